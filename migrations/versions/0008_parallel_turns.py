"""Several running turns in a conversation whose client asks several models at once, each with another slot."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("turns", sa.Column("slot", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.drop_index("ix_turns_running", "turns")
    running = sa.text("status = 'running'")
    op.create_index(
        "ix_turns_running",
        "turns",
        ["conversation", "slot"],
        unique=True,
        sqlite_where=running,
        postgresql_where=running,
    )
