"""Custom agents and teams, and the snapshot with which a turn started."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "creations",
        sa.Column("key", KEY, nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("made_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_creations"),
        sa.UniqueConstraint("caller", "name", "version", name="uq_creations_caller_name_version"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "snapshots",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("digest", sa.String(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("caller", "digest", name="pk_snapshots"),
    )
    op.add_column("turns", sa.Column("snapshot", sa.String(), nullable=True))
