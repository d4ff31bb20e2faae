"""What clients of older systems send and expect: shapes, and encoders over the same events as everything else."""
