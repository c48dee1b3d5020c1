"""One step: pairs are read and checked, planned once, and handed to kernels."""
