"""The optimizer's state in the formats of other libraries."""
