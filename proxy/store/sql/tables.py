"""The tables, the same on SQLite and PostgreSQL.

A changed table comes with a migration; a test compares the two. Keys (``key``, ``turn``, ``conversation``) are the
store's own and give the order; ids are public. Times are seconds since the epoch.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec
from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)


def storable(words: str) -> str:
    """Return the text that both databases accept: PostgreSQL rejects NUL, and no encoding has lone surrogates."""
    if "\0" in words:
        words = words.replace("\0", "\ufffd")
    if words.isascii():
        return words
    return words.encode("utf-8", "replace").decode()


MAX_NAME = 256
"""Characters of a text that is stored as it is in an index."""


def indexable(name: str) -> str:
    """Return the text, or a digest when it is too long for an index of PostgreSQL (2,704 bytes for the whole row)."""
    if len(name) <= MAX_NAME and name.isascii() and "\0" not in name:
        return name
    name = storable(name)
    return name if len(name) <= MAX_NAME else f"blake2b:{blake2b(name.encode(), digest_size=32).hexdigest()}"


def _storable(words: str | None) -> str | None:
    # Without another call for nearly all values.
    return words if words is None or (words.isascii() and "\0" not in words) else storable(words)


def _indexable(name: str | None) -> str | None:
    return name if name is None else indexable(name)


class Words(TypeDecorator[str]):
    """Text from outside, made storable on its way in."""

    impl = Text
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return the function that every value goes through; ``PreparedStatement`` omits it where it changes none."""
        return _storable


class Name(Words):
    """Text from outside that is looked up."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return the function that every value goes through."""
        return _indexable


class Digest(TypeDecorator[bytes]):
    """A digest, stored as hexadecimal text so that lists of them fit into one parameter on both databases."""

    impl = String
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return the function that every value goes through."""
        return lambda value: value if value is None else value.hex()

    def result_processor(self, dialect: Dialect, coltype: object) -> Any:
        """Return the function that every value comes back through."""
        return lambda value: value if value is None else bytes.fromhex(value)


def encode_json(value: object) -> str:
    """Encode a JSON column."""
    return msgspec.json.encode(value).decode()


class Json(TypeDecorator[Any]):
    """JSON: ``JSONB`` in PostgreSQL, whose dialect is imported only where it is used."""

    impl = JSON
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the type in this database."""
        if dialect.name != "postgresql":
            return dialect.type_descriptor(JSON())
        from sqlalchemy.dialects.postgresql import JSONB

        return dialect.type_descriptor(JSONB())

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return the function that every value goes through: on SQLite without a function of SQLAlchemy around it."""
        return encode_json if dialect.name == "sqlite" else super().bind_processor(dialect)


class EncodedJson(Json):
    """JSON that is given encoded."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return None: nothing is converted."""
        return None


def encoded(column: Column[Any]) -> TypeEngine[Any]:
    """Return the type of a parameter for the column whose values are given as they are stored."""
    if isinstance(column.type, Json):
        return EncodedJson()
    return String() if isinstance(column.type, Digest) else column.type


# SQLite numbers rows by itself only in a column whose type is INTEGER.
_Key = BigInteger().with_variant(Integer, "sqlite")

conversations = Table(
    "conversations",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("id", Name, nullable=False),
    Column("caller", Name, nullable=False),
    Column("end_user", Words, nullable=False),
    Column("team", Words, nullable=False),
    Column("head", _Key),
    Column("metadata", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("caller", "id"),
    Index("ix_conversations_caller_key", "caller", "key"),
    # Keys give the order, so the key of a deleted row is never used again.
    sqlite_autoincrement=True,
)

# ``caller`` may retrieve the turn by its id; "" after its completion was deleted.
# ``head`` and ``parent`` are not foreign keys: whole conversations are deleted at once, and checking each of their
# turns for children would make that slow.
turns = Table(
    "turns",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("id", Name, nullable=False),
    Column("conversation", _Key, ForeignKey("conversations.key", ondelete="CASCADE"), nullable=False),
    Column("parent", _Key),
    Column("caller", Name, nullable=False),
    Column("end_user", Words, nullable=False),
    Column("team", Words, nullable=False),
    Column("model", Words, nullable=False),
    Column("status", String, nullable=False),
    Column("is_history", Boolean, nullable=False),
    Column("agent", Words, nullable=False),
    Column("is_stored", Boolean, nullable=False),
    Column("is_listed", Boolean, nullable=False),
    Column("metadata", Json, nullable=False),
    Column("options", LargeBinary, nullable=False),
    Column("worker", Words, nullable=False),
    Column("lease_until", Double, nullable=False),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
    Column("created_at", Double, nullable=False),
    Column("finished_at", Double),
    Column("finish_reason", String),
    Column("error_code", Words),
    Column("fingerprint", Digest),
    Column("last_answer", Digest),
    Column("idempotency_key", Name),
    Column("body_digest", Digest),
    Column("inputs", Integer, nullable=False, doc="how many items are input"),
    Column("pending", Words, doc="JSON list of call ids"),
    Column("uses", Words, doc="JSON list: what the agents used of the models"),
    Column("journal", LargeBinary),
    Column("circumstances", LargeBinary, doc="of a turn that asks for approval; null for all others"),
    Column("snapshot", String, doc="digest of the team as its caller had made it"),
    Column("input_fingerprint", Digest),
    Column("first_attempt", Name),
    Column("ran_effects", Boolean, nullable=False, server_default=false()),
    Column("left_at", Double),
    Column("cancel_at", Double),
    Column("reader_until", Double),
    Column("progress", Text, doc="JSON of the items so far, while the turn is running"),
    Column("fence", Integer, nullable=False, server_default=text("0"), doc="how often it was taken over"),
    Column("slot", Integer, nullable=False, server_default=text("0")),
    UniqueConstraint("id"),
    UniqueConstraint("caller", "idempotency_key"),
    sqlite_autoincrement=True,
)
# Each alias has a copy of all columns, 70 KB: statements share these two.
newest_turns, other_turns = turns.alias("newest"), turns.alias("other")


def _index(name: str, *columns: Column[Any], where: str | None = None, unique: bool = False) -> None:
    condition = None if where is None else text(where)
    Index(name, *columns, unique=unique, sqlite_where=condition)


def add_postgresql_conditions() -> None:
    """Give the partial indexes their conditions in PostgreSQL too, which imports its dialect."""
    for table in metadata.tables.values():
        for index in table.indexes:
            index.dialect_options["postgresql"]["where"] = index.dialect_options["sqlite"]["where"]


_of = turns.c
# It also finds the running turns of a worker: it has only those that run, in all workers.
_index("ix_turns_running", _of.conversation, _of.slot, where="status = 'running'", unique=True)
_index("ix_turns_conversation_key", _of.conversation, _of.key)
# With the conversation in the middle, one index finds the turns of all conversations and of one.
for _column in (_of.fingerprint, _of.last_answer):
    _index(
        f"ix_turns_{_column.name}_conversation_key",
        _column,
        _of.conversation,
        _of.key,
        where=f"{_column.name} IS NOT NULL",
    )
_index("ix_turns_input", _of.input_fingerprint, _of.key, where="input_fingerprint IS NOT NULL")
_index("ix_turns_body_digest", _of.caller, _of.body_digest, _of.key, where="body_digest IS NOT NULL")
_index("ix_turns_listed", _of.caller, _of.key, where="is_listed")

items = Table(
    "items",
    metadata,
    Column("turn", _Key, ForeignKey("turns.key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("is_input", Boolean, nullable=False),
    Column("agent", Words),
    Column("visible", Boolean, nullable=False),
    Column("message", Text, nullable=False, doc="JSON in the format of the OpenAI API"),
)

foreign_items = Table(
    "foreign_items",
    metadata,
    Column("turn", _Key, ForeignKey("turns.key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    # Not one that the turn has in ``items``.
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("body", Text, nullable=False, doc="JSON as it came"),
)

pending_calls = Table(
    "pending_calls",
    metadata,
    Column("caller", Name, primary_key=True),
    Column("call_id", Name, primary_key=True),
    Column("turn", _Key, ForeignKey("turns.key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("conversation", _Key, nullable=False),
    Index("ix_pending_calls_turn", "turn"),
    Index("ix_pending_calls_conversation", "conversation", "call_id", "turn"),
)

# The decision is stored; its present meaning depends on the head of the conversation (see ``store.sql.approvals``).
approvals = Table(
    "approvals",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("id", Name, nullable=False),
    Column("caller", Name, nullable=False),
    Column("conversation", _Key, nullable=False),
    Column("turn", _Key, ForeignKey("turns.key", ondelete="CASCADE"), nullable=False),
    Column("call_id", Words, nullable=False),
    Column("agent", Words, nullable=False),
    Column("tool", Words, nullable=False),
    Column("arguments", Words, nullable=False),
    Column("decision", String),
    Column("decided_by", String),
    Column("reason", Words),
    Column("created_at", Double, nullable=False),
    Column("decided_at", Double),
    Column("resumed_by", Name, doc="id of the newest turn that took it up"),
    Column("attempts", Integer, nullable=False, doc="how many turns took it up"),
    Column(
        "is_unattended", Boolean, nullable=False, doc="that turn is to be begun again when its worker dies"
    ),
    Column("run_in", Name, doc="id of the turn that ran the call, or was about to"),
    Column("result", Words),
    UniqueConstraint("id"),
    Index("ix_approvals_turn", "turn", "key"),
    Index("ix_approvals_caller_key", "caller", "key"),
    sqlite_autoincrement=True,
)
Index(
    "ix_approvals_unattended",
    approvals.c.key,
    sqlite_where=text("is_unattended"),
)

# All versions of custom agents and teams.
creations = Table(
    "creations",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("caller", Name, nullable=False),
    Column("kind", String, nullable=False),
    Column("name", Words, nullable=False),
    Column("version", Integer, nullable=False),
    Column("body", LargeBinary, nullable=False, doc="JSON"),
    Column("made_at", Double, nullable=False),
    UniqueConstraint("caller", "name", "version"),
    sqlite_autoincrement=True,
)

# What conversations began with: an agent or a team with all that it hands over to.
snapshots = Table(
    "snapshots",
    metadata,
    Column("caller", Name, primary_key=True),
    Column("digest", String, primary_key=True),
    Column("name", Words, nullable=False),
    Column("body", LargeBinary, nullable=False, doc="JSON"),
)

# API keys: only the digest of a key is stored.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True, doc="the public part"),
    Column("name", Words, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("events", String),
    Column("requests_per_minute", Integer),
    Column("tokens_per_minute", Integer),
    Column("models", Json),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("revoked_at", Double),
)

# Deleted at the end of the turn.
checkpoints = Table(
    "checkpoints",
    metadata,
    Column("turn", _Key, ForeignKey("turns.key", ondelete="CASCADE"), primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("state", LargeBinary, nullable=False, doc="JSON"),
    Column("items", Text, nullable=False, doc="JSON of the items since the previous checkpoint"),
    Column("journal", LargeBinary, doc="of the events since the previous checkpoint"),
)

# Messages between workers, for databases that cannot notify. Rows are deleted after a minute.
worker_messages = Table(
    "worker_messages",
    metadata,
    Column("key", _Key, primary_key=True),
    Column("recipient", Words, nullable=False, doc="a worker; empty for all"),
    Column("sender", String, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("sent_at", Double, nullable=False),
    Index("ix_worker_messages_recipient_key", "recipient", "key"),
    Index("ix_worker_messages_sent_at", "sent_at"),
    sqlite_autoincrement=True,
)
