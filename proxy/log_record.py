"""Records of a line that is logged for each request, without what the constructor of ``logging`` looks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping


class FieldsRecord(logging.LogRecord):
    """A record whose attributes of ``extra`` are also in ``fields``: a formatter does not have to search for them."""

    __slots__ = ("fields",)

    fields: dict[str, object]


def constant_attributes(logger: str, level: int, message: str) -> Mapping[str, object]:
    """Return the attributes of a record that are the same for all lines of this kind."""
    # A copy: the attributes of an instance share their names with those of others, and take twice as long to copy.
    return {**logging.LogRecord(logger, level, "", 0, message, (), None).__dict__}


def fields_record(constant: Mapping[str, object], fields: dict[str, object]) -> FieldsRecord:
    """Return a record with these attributes and fields. It has no place of the call, thread and process."""
    record = FieldsRecord.__new__(FieldsRecord)
    now = time.time()
    record.__dict__ = {**constant, "created": now, "msecs": now % 1 * 1000, **fields}
    record.fields = fields
    return record
