"""What a process runs on: devices, storage, checkpoints, metrics."""
