"""Messages between workers: over PostgreSQL, over Redis, or through a table that is polled."""
