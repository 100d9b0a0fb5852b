"""The loop, optimisers, checkpoints, run folders, distribution."""
