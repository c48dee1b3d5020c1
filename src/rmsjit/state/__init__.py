"""What an optimizer remembers: the memory of each variable, and its slots."""
