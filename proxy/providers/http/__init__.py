"""HTTP connections to providers."""
