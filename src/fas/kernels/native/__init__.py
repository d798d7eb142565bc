"""Machine code of the kernels: for the CPU by numba, for GPUs by Triton."""
