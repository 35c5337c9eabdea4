"""What both sides speak: messages, the channel that carries them, and how users' objects travel."""
