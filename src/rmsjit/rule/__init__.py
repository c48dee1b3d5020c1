"""The rule as a value: its forms, its numbers, and what happens to gradients before it."""
