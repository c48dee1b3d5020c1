"""The optimizers as their users see them: arguments, methods, state in each library's words."""
