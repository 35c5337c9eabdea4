"""`World`: process control as the user sees it, in a worker, a `torchrun` script or a plain process."""
