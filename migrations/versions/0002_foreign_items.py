"""Items that agents do not receive, and the creation order of conversations."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "foreign_items",
        sa.Column("turn", KEY, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["turn"], ["turns.key"], name="fk_foreign_items_turn", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn", "position", name="pk_foreign_items"),
    )
    op.create_index("ix_conversations_caller_key", "conversations", ["caller", "key"])
