"""The member ``kept`` of stored compactions is ``retained_from``.

It is the first member of the object ``compaction`` behind a stored message. In the text of a message quotes are
escaped, so that only this object has these characters. A server of the previous version ignores the new name until it
is replaced: it sends the whole conversation, and compacts it again.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    items = sa.table("items", sa.column("message", sa.Text), sa.column("visible", sa.Boolean))
    old, new = '"compaction":{"kept":', '"compaction":{"retained_from":'
    op.execute(
        items.update()
        .where(items.c.message.contains(old, autoescape=True))
        .values(message=sa.func.replace(items.c.message, old, new))
    )
