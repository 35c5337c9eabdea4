"""What runs in a worker process. Imports the protocol, never the kernel side."""
