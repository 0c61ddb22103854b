"""Training and evaluation of networks: loops, optimizer, checkpoints, logs and processes."""
