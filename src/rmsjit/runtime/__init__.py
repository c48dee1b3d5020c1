"""What the kernels run on: the compile cache and the threads."""
