"""Runs the migrations over the connection that ``proxy.store.engine.migrations`` hands in, within its transaction."""

from alembic import context

from proxy.store.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
