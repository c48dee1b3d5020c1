"""Benchmarks of rmsjit: an asv suite, and comparisons with other libraries."""
