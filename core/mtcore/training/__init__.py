"""The training wing: the loop, its checkpoints, and processes."""
