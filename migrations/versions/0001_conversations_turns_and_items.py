"""Conversations, turns and items."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def upgrade() -> None:
    op.create_table(
        "conversations",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("end_user", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("head", KEY),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_conversations"),
        sa.UniqueConstraint("caller", "id", name="uq_conversations_caller_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "turns",
        sa.Column("key", KEY, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("conversation", KEY, nullable=False),
        sa.Column("parent", KEY),
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("end_user", sa.Text(), nullable=False),
        sa.Column("team", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("is_history", sa.Boolean(), nullable=False),
        sa.Column("agent", sa.Text(), nullable=False),
        sa.Column("is_stored", sa.Boolean(), nullable=False),
        sa.Column("is_listed", sa.Boolean(), nullable=False),
        sa.Column("metadata", JSON, nullable=False),
        sa.Column("options", sa.LargeBinary(), nullable=False),
        sa.Column("worker", sa.Text(), nullable=False),
        sa.Column("lease_until", sa.Double(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double()),
        sa.Column("finish_reason", sa.String()),
        sa.Column("error_code", sa.Text()),
        sa.Column("fingerprint", sa.String()),
        sa.Column("last_answer", sa.String()),
        sa.Column("idempotency_key", sa.Text()),
        sa.Column("body_digest", sa.String()),
        sa.Column("inputs", sa.Integer(), nullable=False),
        sa.Column("pending", sa.Text()),
        sa.Column("uses", sa.Text()),
        sa.Column("journal", sa.LargeBinary()),
        sa.ForeignKeyConstraint(
            ["conversation"], ["conversations.key"], name="fk_turns_conversation", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("key", name="pk_turns"),
        sa.UniqueConstraint("caller", "idempotency_key", name="uq_turns_caller_idempotency_key"),
        sa.UniqueConstraint("id", name="uq_turns_id"),
        sqlite_autoincrement=True,
    )
    index("ix_turns_running", "conversation", where="status = 'running'", unique=True)
    index("ix_turns_worker", "worker", where="status = 'running'")
    index("ix_turns_fingerprint", "fingerprint", "key", where="fingerprint IS NOT NULL")
    index("ix_turns_last_answer", "last_answer", "key", where="last_answer IS NOT NULL")
    index("ix_turns_conversation_fingerprint", "conversation", "fingerprint", "key")
    index(
        "ix_turns_conversation_last_answer",
        "conversation",
        "last_answer",
        "key",
        where="last_answer IS NOT NULL",
    )
    index("ix_turns_body_digest", "caller", "body_digest", "key", where="body_digest IS NOT NULL")
    index("ix_turns_listed", "caller", "key", where="is_listed")
    op.create_table(
        "items",
        sa.Column("turn", KEY, autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("is_input", sa.Boolean(), nullable=False),
        sa.Column("agent", sa.Text()),
        sa.Column("visible", sa.Boolean(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["turn"], ["turns.key"], name="fk_items_turn", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("turn", "position", name="pk_items"),
    )
    op.create_table(
        "pending_calls",
        sa.Column("caller", sa.Text(), nullable=False),
        sa.Column("call_id", sa.Text(), nullable=False),
        sa.Column("turn", KEY, autoincrement=False, nullable=False),
        sa.Column("conversation", KEY, nullable=False),
        sa.ForeignKeyConstraint(["turn"], ["turns.key"], name="fk_pending_calls_turn", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("caller", "call_id", "turn", name="pk_pending_calls"),
    )
    op.create_index("ix_pending_calls_turn", "pending_calls", ["turn"])
    op.create_index("ix_pending_calls_conversation", "pending_calls", ["conversation", "call_id", "turn"])
    if op.get_bind().dialect.name == "postgresql":
        # With skewed statistics the planner prefers a sequential scan, which is cheap for frequent values only.
        for table, column in (
            ("turns", "fingerprint"),
            ("turns", "last_answer"),
            ("turns", "body_digest"),
            ("pending_calls", "call_id"),
        ):
            op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET (n_distinct = -1)")


def index(name: str, *columns: str, where: str | None = None, unique: bool = False) -> None:
    condition = None if where is None else sa.text(where)
    op.create_index(
        name, "turns", [*columns], unique=unique, sqlite_where=condition, postgresql_where=condition
    )
