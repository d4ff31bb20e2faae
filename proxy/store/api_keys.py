"""``KeyStore`` in a SQL database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Connection, Row, bindparam, insert, select, update

from proxy.auth import ApiKeyRecord, Terms
from proxy.store.engine.database import Database
from proxy.store.engine.group_commit import OtherWrite
from proxy.store.engine.writer import Writer
from proxy.store.sql.tables import api_keys

_of = api_keys.c
_FIND = select(api_keys).where(_of.id == bindparam("of_id"))
_ANY = select(_of.id).where(_of.revoked_at.is_(None)).limit(1)
_ALL = select(api_keys).order_by(_of.created_at, _of.id)
_REVOKE = (
    update(api_keys)
    .where(_of.id == bindparam("of_id"), _of.revoked_at.is_(None))
    .values(revoked_at=bindparam("now"))
)


class SqlKeys:
    """``KeyStore`` in a SQL database.

    It shares the database and the writer of a ``SqlHistory``, which closes them.
    """

    def __init__(self, database: Database, writer: Writer) -> None:
        self._database = database
        self._writer = writer

    async def find(self, key_id: str) -> ApiKeyRecord | None:
        row = await self._database.read(lambda on: on.execute(_FIND, {"of_id": key_id}).first())
        return None if row is None else _key(row)

    async def has_any(self) -> bool:
        return await self._database.read(lambda on: on.scalar(_ANY)) is not None

    async def all(self) -> Sequence[ApiKeyRecord]:
        return [_key(row) for row in await self._database.read(lambda on: on.execute(_ALL).all())]

    async def add(self, key: ApiKeyRecord) -> None:
        terms = key.terms
        row = {
            "id": key.id,
            "name": key.name,
            "digest": key.digest,
            "events": terms.events,
            "requests_per_minute": terms.requests_per_minute,
            "tokens_per_minute": terms.tokens_per_minute,
            "models": None if terms.models is None else list(terms.models),
            "created_at": key.created_at,
            "expires_at": key.expires_at,
            "revoked_at": key.revoked_at,
        }

        def write(connection: Connection) -> None:
            # The writer retries when the outcome of a commit is unknown.
            if connection.execute(_FIND, {"of_id": key.id}).first() is None:
                connection.execute(insert(api_keys), row)

        await self._writer.write(OtherWrite(write))

    async def revoke(self, key_id: str, *, now: float) -> bool:

        def write(connection: Connection) -> bool:
            return connection.execute(_REVOKE, {"of_id": key_id, "now": now}).rowcount > 0

        return cast(bool, await self._writer.write(OtherWrite(write)))


def _key(row: Row[Any]) -> ApiKeyRecord:
    models = None if row.models is None else tuple(row.models)
    terms = Terms(row.events, row.requests_per_minute, row.tokens_per_minute, models)
    return ApiKeyRecord(row.id, row.name, row.digest, terms, row.created_at, row.expires_at, row.revoked_at)
