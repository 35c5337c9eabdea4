"""From the workers' bytes to what the notebook shows."""
