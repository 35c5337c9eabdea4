"""What other libraries need so that they work unchanged inside a worker."""
