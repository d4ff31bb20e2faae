"""The offline demo model and its scripts."""
