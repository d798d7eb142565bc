"""What every command shares: options, output, progress, messages of failure."""
