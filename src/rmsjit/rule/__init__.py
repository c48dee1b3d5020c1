"""The update rule: its forms, its hyperparameters, and gradient clipping."""
