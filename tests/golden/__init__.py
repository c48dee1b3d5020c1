"""Vectors that TensorFlow computed, and what makes, describes and compares them."""
