"""Team files read and checked: YAML with places, the schema's mistakes, and whether every name exists."""
