"""Validate the arguments of a call against the JSON Schema of an MCP tool, with errors that a model can act on.

The schema comes from the server, so the validator fetches no references and limits backtracking in patterns. If the
schema is invalid or expands too far, or its validation takes too long, the arguments are not validated here: the
server has to do it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from proxy.errors import ToolError
from proxy.wire.schema_expansion import ExpansionTooLarge, check_expansion
from proxy.wire.schema_process import in_process, matches, problems_of_text
from proxy.wire.schema_validator import SchemaValidator

_MAX_SECONDS = 0.02
_NO_MATCH = "the arguments do not match the schema of the tool"


class ArgumentSchema:
    """Compiled JSON Schema of the arguments of a tool."""

    def __init__(self, schema: Mapping[str, object]) -> None:
        self._schema = schema
        self._validator: SchemaValidator | None = None
        self._is_recursive = False
        try:
            self._is_recursive = check_expansion(schema)
            self._validator = SchemaValidator(schema)
        except (ValueError, ExpansionTooLarge):
            pass

    async def check(self, arguments: Mapping[str, object]) -> None:
        """Validate the arguments of a call; in a separate process, if that could block the event loop.

        Raises:
            ToolError: The message has the first validation errors.
        """
        if self._validator is None:
            return
        text = msgspec.json.encode(arguments).decode()
        if self._validator.seconds(text) <= _MAX_SECONDS:
            problems = self._problems(self._validator, arguments)
        else:
            problems = await self._problems_of_text(text)
        if problems:
            raise ToolError("; ".join(problems))

    def _problems(self, validator: SchemaValidator, arguments: Mapping[str, object]) -> list[str]:
        try:
            if validator.is_valid(arguments):
                return []
            # To describe errors, the validator evaluates each branch of a recursive schema again at each level: 18
            # levels of an ``anyOf`` with two branches took 24 s.
            return [_NO_MATCH] if self._is_recursive else validator.problems(arguments)
        except ValueError:  # numbers outside the validator's range
            return []

    async def _problems_of_text(self, text: str) -> list[str]:
        schema = msgspec.json.encode(self._schema)
        if self._is_recursive:
            return [_NO_MATCH] if await in_process(matches, schema, text) is False else []
        return await in_process(problems_of_text, schema, text) or []
