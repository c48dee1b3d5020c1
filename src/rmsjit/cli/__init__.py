"""The subcommands of ``python -m rmsjit``."""
