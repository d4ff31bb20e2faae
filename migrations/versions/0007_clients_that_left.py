"""Clients that left running turns, the progress of turns, and the digest of a turn's input."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("input_fingerprint", sa.String()))
    op.add_column("turns", sa.Column("first_attempt", sa.Text()))
    op.add_column("turns", sa.Column("ran_effects", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("turns", sa.Column("left_at", sa.Double()))
    op.add_column("turns", sa.Column("cancel_at", sa.Double()))
    op.add_column("turns", sa.Column("reader_until", sa.Double()))
    op.add_column("turns", sa.Column("progress", sa.Text()))
    condition = sa.text("input_fingerprint IS NOT NULL")
    op.create_index(
        "ix_turns_input",
        "turns",
        ["input_fingerprint", "key"],
        sqlite_where=condition,
        postgresql_where=condition,
    )
