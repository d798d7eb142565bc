"""What lies on the disk: whole directories, checksums, sharded checkpoints, model cards."""
