"""The state of an optimizer: its variables and their slots."""
