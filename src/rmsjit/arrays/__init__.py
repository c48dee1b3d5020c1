"""Arrays as memory: dtypes, layout, where they begin, and what overlaps."""
