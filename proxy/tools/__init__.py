"""Tools: Python functions and delegates, and one call of one of them, checked, timed and cut to size."""
