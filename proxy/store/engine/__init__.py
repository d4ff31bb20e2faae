"""Database engines, the group-commit writer, and migrations."""
