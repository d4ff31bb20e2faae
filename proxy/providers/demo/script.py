"""The scripts of the demonstration: rules, read from data files, that decide the text and the calls of an agent.

The state of a conversation is its messages: a rule reads the user's last text, the last text of an agent, and the
result of the last tool call. Therefore a script continues after a restart, an edit or a regenerated answer.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import yaml
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from proxy.errors import ConfigurationError
from proxy.messages import FunctionTool
from proxy.providers.demo.context import Situation
from proxy.teamfiles.definitions import FunctionName, Name

FOLDER = Path(__file__).parents[2] / "teamfiles" / "bundled"
ANY = "*"
_MAX_FILLED = 200
"""Characters of one value filled into a text."""
_Pattern = Annotated[str, Field(min_length=1)]
_PATTERNS = ("said", "asked", "said_before", "answered_before", "result", "given_before")


class Reply(Struct, frozen=True):
    """What an agent says, and the calls it makes: (name, arguments)."""

    text: str
    calls: tuple[tuple[str, dict[str, object]], ...] = ()


class _Closed(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ScriptedCall(_Closed):
    """A call of a tool. Texts among the arguments are filled in, then given the type that the tool asks for."""

    name: FunctionName
    arguments: dict[str, str | int | float | bool] = {}


class ScriptedRule(_Closed):
    """A condition, and the text and calls that follow if it holds. Patterns are searched for, in any case.

    Without ``after`` a rule holds only when the agent has not just been given a tool's result. A rule whose calls
    are not offered, or were made already since the user's last text, does not hold. Named groups of the patterns
    can be filled in as ``{name}``, or ``{name:,}`` for an amount in groups of three digits, in addition to ``{agent}``,
    ``{team}`` and ``{words}``, the user's last text.
    """

    said: _Pattern | None = None
    asked: _Pattern | None = None
    said_before: _Pattern | None = None
    """In all texts of the user, the newest first."""
    answered_before: _Pattern | None = None
    """In all texts of agents, the newest first."""
    after: FunctionName | None = None
    result: _Pattern | None = None
    given_before: _Pattern | None = None
    """In results of tools for any agent since the user's last text, the oldest first."""
    also: bool = False
    """Rules with ``also`` that hold are taken together, up to the next rule without it."""
    say: str = ""
    call: tuple[ScriptedCall, ...] = ()

    @model_validator(mode="after")
    def _is_complete(self) -> ScriptedRule:
        if not self.say.strip() and not self.call:
            raise ValueError("a rule has to say or to call something")
        known = {"agent", "team", "words"}
        for pattern in self._patterns():
            known |= _compiled(pattern).groupindex.keys() if pattern else set()
        texts = [self.say, *(str(value) for call in self.call for value in call.arguments.values())]
        if unknown := {name for text in texts for name in _PLACEHOLDER.findall(text)} - known:
            raise ValueError(f"no pattern of the rule captures {', '.join(sorted(unknown))}")
        return self

    def _patterns(self) -> Sequence[str | None]:
        return [getattr(self, key) for key in _PATTERNS]

    def matches(self, situation: Situation) -> dict[str, str] | None:
        """Return what the patterns captured, or None when the rule does not hold."""
        if self.after not in situation.results if self.after else situation.results:
            return None
        if any(call.name not in situation.offered or call.name in situation.called for call in self.call):
            return None
        captured: dict[str, str] = {}
        for pattern, texts in (
            (self.said, (situation.said,)),
            (self.asked, (situation.asked,)),
            (self.said_before, situation.user_texts),
            (self.answered_before, situation.agent_texts),
            (self.result, (situation.results.get(self.after or "", ""),)),
            (self.given_before, (situation.given,)),
        ):
            if pattern is None:
                continue
            found = next((found for text in texts if (found := _compiled(pattern).search(text))), None)
            if found is None:
                return None
            captured.update({name: value or "" for name, value in found.groupdict().items()})
        return captured


class AgentScript(_Closed):
    """The rules of one agent: the first that holds decides, together with those that have ``also``.

    ``otherwise`` is the text if none holds.
    """

    rules: tuple[ScriptedRule, ...] = ()
    otherwise: Annotated[str, Field(min_length=1)]

    def reply(self, situation: Situation) -> Reply:
        """Decide what to say and to call."""
        builtin = {"agent": situation.agent, "team": situation.team, "words": situation.said}
        texts: list[str] = []
        calls: list[tuple[str, dict[str, object]]] = []
        for rule in self.rules:
            if not rule.also and (texts or calls):
                break
            captured = rule.matches(situation)
            if captured is None:
                continue
            values = {**builtin, **captured}
            texts += [_filled(rule.say, values).strip()] if rule.say.strip() else []
            calls += [(call.name, _arguments(call, values, situation.offered)) for call in rule.call]
            if not rule.also:
                break
        if not texts and not calls:
            return Reply(_filled(self.otherwise, builtin).strip())
        return Reply("\n\n".join(texts), tuple(calls))


class Script(_Closed):
    """How one team is played. ``patterns`` are named parts of patterns, written there as ``{NAME}``."""

    team: Name | Annotated[str, Field(pattern=r"^\*$")]
    patterns: dict[Annotated[str, Field(pattern=r"^[A-Z][A-Z_]*$")], str] = {}
    agents: dict[Name | Annotated[str, Field(pattern=r"^\*$")], AgentScript]

    @model_validator(mode="before")
    @classmethod
    def _with_patterns(cls, data: Any) -> Any:
        """Put the named parts in their places, so that rules are checked with whole patterns."""
        if not isinstance(data, dict) or not isinstance(parts := data.get("patterns", {}), dict):
            return data
        for script in _mappings(data.get("agents")):
            for rule in _items(script.get("rules")):
                for key in _PATTERNS:
                    if isinstance(rule.get(key), str):
                        rule[key] = _with_parts(rule[key], parts)
        return data


# The loader of libyaml is ten times as fast, but optional in PyYAML.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_script(path: Path) -> Script:
    """Read a script.

    Raises:
        ConfigurationError: With what is wrong in the file.
    """
    try:
        return Script.model_validate(yaml.load(path.read_text(encoding="utf-8"), _LOADER))  # noqa: S506
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, ValidationError):
            problems = error.errors(include_url=False)
            lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in problems]
        else:
            lines = [str(error)]
        raise ConfigurationError("\n".join(f"{path.name}: {line}" for line in lines)) from None


@functools.cache
def bundled_scripts() -> Mapping[str, Script]:
    """Return the scripts that come with the program, by team; ``*`` plays the agents that no other script knows."""
    scripts = [load_script(path) for path in sorted(FOLDER.glob("*.demo.yaml"))]
    return MappingProxyType({script.team: script for script in scripts})


# --- patterns and texts ---

_PLACEHOLDER = re.compile(r"\{([a-z_]+)(?::,)?\}")
_PART = re.compile(r"\{([A-Z][A-Z_]*)\}")


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.IGNORECASE | re.DOTALL)
    except re.error as error:
        raise ValueError(f"not a pattern: {error}") from None


def _with_parts(pattern: str, parts: Mapping[str, object], around: tuple[str, ...] = ()) -> str:
    def part(found: re.Match[str]) -> str:
        name = found[1]
        if name not in parts:
            raise ValueError(f"there is no pattern named {name}")
        if name in around:
            raise ValueError(f"pattern {name} holds itself")
        return f"(?:{_with_parts(str(parts[name]), parts, (*around, name))})"

    return _PART.sub(part, pattern)


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Fill in values as plain text, in one line each and cut: what people wrote is never a template itself."""

    def value(found: re.Match[str]) -> str:
        line = " ".join(values.get(found[1], found[0]).split())
        if found[0].endswith(":,}") and re.fullmatch(r"-?\d+(\.\d+)?", line):
            return f"{Decimal(line):,.2f}" if "." in line else f"{Decimal(line):,}"
        return line if len(line) <= _MAX_FILLED else f"{line[: _MAX_FILLED - 1]}…"

    return _PLACEHOLDER.sub(value, text)


def _arguments(
    call: ScriptedCall, values: Mapping[str, str], offered: Mapping[str, FunctionTool]
) -> dict[str, object]:
    properties = (offered[call.name].parameters or {}).get("properties", {})
    return {
        name: _typed(_filled(value, values), properties.get(name)) if isinstance(value, str) else value
        for name, value in call.arguments.items()
    }


def _typed(text: str, schema: Any) -> object:
    kind = schema.get("type") if isinstance(schema, dict) else None
    if kind not in ("number", "integer"):
        return text
    try:
        number = float(re.sub(r"[^\d.-]", "", text))
    except ValueError:
        return text
    return int(number) if kind == "integer" else number


def _mappings(value: Any) -> Iterable[dict[str, Any]]:
    return [part for part in value.values() if isinstance(part, dict)] if isinstance(value, dict) else []


def _items(value: Any) -> Iterable[dict[str, Any]]:
    return [part for part in value if isinstance(part, dict)] if isinstance(value, list) else []
