"""The asv suite, in its own folder because asv imports everything in it."""
