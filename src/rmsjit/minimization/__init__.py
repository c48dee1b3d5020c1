"""Minimising a function of one array, in the manner of ``scipy.optimize.minimize``."""
