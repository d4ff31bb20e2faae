"""Messages between workers whose database cannot notify: SQLite, and PostgreSQL behind a pooler."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "worker_messages",
        sa.Column("key", KEY, nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("sender", sa.String(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.Column("sent_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_worker_messages"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_worker_messages_recipient_key", "worker_messages", ["recipient", "key"])
    op.create_index("ix_worker_messages_sent_at", "worker_messages", ["sent_at"])
