"""Training of cells: the training loop, jobs, checkpoints, callbacks and verification."""
