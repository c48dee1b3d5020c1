"""Pytest looks for doctests in every module; the generator can't be imported without TensorFlow."""

collect_ignore = ["make_golden.py"]
