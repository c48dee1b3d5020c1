"""Arrays as memory: dtypes, layout, alignment, ownership and overlap."""
