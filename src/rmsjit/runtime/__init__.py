"""The runtime of the kernels: compile cache, threads and forks."""
