"""Programs to watch, and to read: how a model in plain NumPy is trained with rmsjit."""
