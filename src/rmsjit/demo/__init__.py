"""Example programs that train models in plain NumPy with rmsjit."""
