"""The plain training loop, its state and its checkpoints."""
