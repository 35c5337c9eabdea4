"""All that comes before the first cell: what this machine has, how workers are started, where they meet."""
