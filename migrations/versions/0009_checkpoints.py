"""Checkpoints of running turns, and how often a turn was taken over by another worker."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("turns", sa.Column("fence", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.create_table(
        "checkpoints",
        sa.Column("turn", KEY, autoincrement=False, nullable=False),
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("items", sa.Text(), nullable=False),
        sa.Column("journal", sa.LargeBinary()),
        sa.ForeignKeyConstraint(["turn"], ["turns.key"], name="fk_checkpoints_turn", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn", "number", name="pk_checkpoints"),
    )
