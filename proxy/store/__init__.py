"""The SQL store: conversations, turns and items as a tree."""
