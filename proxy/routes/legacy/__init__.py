"""Endpoints of the systems that this product replaces."""
