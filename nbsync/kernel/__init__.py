"""What runs in the Jupyter kernel: the session, the launcher, and everything that watches over the workers."""
