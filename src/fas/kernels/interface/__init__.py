"""What kernels have in common: what they are given, what they offer, and which one runs."""
