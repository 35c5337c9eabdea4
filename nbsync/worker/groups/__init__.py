"""The process groups: made, watched, cut and healed."""
