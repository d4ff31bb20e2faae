"""Team files: loading, checks, definitions."""
