"""Tool calls that need approval, and the data to resume their turns."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("turns", sa.Column("circumstances", sa.LargeBinary()))
    op.create_table(
        "approvals",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("conversation", KEY, nullable=False),
        sa.Column("turn", KEY, nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("tool", sa.Text(), nullable=False),
        sa.Column("arguments", sa.Text(), nullable=False),
        sa.Column("decision", sa.String()),
        sa.Column("decided_by", sa.String()),
        sa.Column("reason", sa.Text()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("decided_at", sa.Double()),
        sa.Column("resumed_by", sa.Text()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("is_unattended", sa.Boolean(), nullable=False),
        sa.Column("run_in", sa.Text()),
        sa.Column("result", sa.Text()),
        sa.ForeignKeyConstraint(["turn"], ["turns.key"], name="fk_approvals_turn", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("key", name="pk_approvals"),
        sa.UniqueConstraint("id", name="uq_approvals_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_approvals_turn", "approvals", ["turn", "key"])
    op.create_index("ix_approvals_caller_key", "approvals", ["caller", "key"])
    unattended = sa.text("is_unattended")
    op.create_index(
        "ix_approvals_unattended",
        "approvals",
        ["key"],
        sqlite_where=unattended,
        postgresql_where=unattended,
    )
