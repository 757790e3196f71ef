"""Mechanism: one idea of Linux per module, OSError as the only error, no policy."""
