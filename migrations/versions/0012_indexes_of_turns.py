"""One index finds the turns of all conversations and of one.

Fingerprints and last answers had two indexes each, and the end of a turn changed two pages more.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index("ix_turns_conversation_key", "turns", ["conversation", "key"])
    for column in ("fingerprint", "last_answer"):
        is_set = sa.text(f"{column} IS NOT NULL")
        op.create_index(
            f"ix_turns_{column}_conversation_key",
            "turns",
            [column, "conversation", "key"],
            sqlite_where=is_set,
            postgresql_where=is_set,
        )
    # Last: in PostgreSQL, readers of the table wait from here until the migration ends.
    for column in ("fingerprint", "last_answer"):
        op.drop_index(f"ix_turns_{column}", "turns")
        op.drop_index(f"ix_turns_conversation_{column}", "turns")
