"""The running turns of a worker are found with the index of all running turns.

A second index cost a page in the begin and in the end of each turn.
"""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("ix_turns_worker", "turns")
