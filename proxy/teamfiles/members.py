"""Agents of team files that are not instructions and a model (``proxy.members``): their keys, and teams of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path as FilePath
from typing import Any

from proxy.errors import ConfigurationError
from proxy.members.member_loader import COMPONENT, load_member
from proxy.members.port import Member, sees_of
from proxy.teamfiles.definitions import TeamDefinition
from proxy.teamfiles.diagnostics import Path, closest_match, quote
from proxy.teamfiles.model_requests import check_connection, check_headers, is_server_url
from proxy.teamfiles.source_map import Source
from proxy.tools.threads import ToolThreads

ImportMember = Callable[[str, FilePath], Member]
"""Creates a member from ``package.module:object``; the folder is an additional place to find modules."""
KINDS = ("python", "component", "remote", "a2a")
"""Keys of an agent, of which it has one instead of ``instructions``."""
_OF_MODELS = (
    "model",
    "fallbacks",
    "tools",
    "delegates",
    "parameters",
    "max_parallel_tools",
    "tool_call_timeout",
)
"""Keys of an agent that apply to the proxy's own model calls."""


def python_members(threads: ToolThreads) -> ImportMember:
    """Return an importer of members; blocking functions run in ``threads``."""
    return lambda path, folder: load_member(path, folder, threads)


def expand_member_teams(source: Source) -> None:
    """Replace each team that is a member (``name: {python: …}``) by a team with one agent of the same name."""
    teams = source.data.get("teams")
    for name, team in list(teams.items()) if isinstance(teams, dict) else ():
        if not isinstance(team, dict) or team.keys() & {"agents", "entry"}:
            continue
        if not team.keys() & set(KINDS):
            _correct_kind(source, name, team)
        if any(key in team for key in KINDS):
            moved = [key for key in (*KINDS, "context_window") if key in team]
            agent = {key: team.pop(key) for key in moved}
            team |= {"entry": name, "agents": {name: agent}}
            for key in moved:
                _copy_locations(source, ("teams", name, key), ("teams", name, "agents", name, key))


def _correct_kind(source: Source, name: str, team: dict[str, Any]) -> None:
    """Report a misspelt key of ``KINDS`` in a team without agents, and read the team as if it were correct."""
    for key in [key for key in team if key not in TeamDefinition.model_fields]:
        kind = closest_match(str(key), KINDS)
        if kind is not None:
            source.add_unknown_key(("teams", name, key), f"unknown key {quote(str(key))}", (kind,))
            team[kind] = team.pop(key)
            _copy_locations(source, ("teams", name, key), ("teams", name, kind))
            return


def check_agent(source: Source, path: Path, agent: Mapping[str, Any]) -> None:
    """Check that an agent has either instructions or one of ``KINDS``, and no keys without effect."""
    if "remote" in agent:
        check_connection(source, (*path, "remote"))
    if "a2a" in agent:
        _check_a2a(source, (*path, "a2a"))
    given = [key for key in ("instructions", *KINDS) if key in agent]
    if not given:
        source.add_error(path, "'instructions' is missing", at_key=True)
    for other in given[1:]:
        source.add_error((*path, other), f"cannot be combined with {quote(given[0])}", at_key=True)
    if "context_window" in agent and "python" not in agent:
        where = {"remote": "; set it in 'remote'", "instructions": "; set it at the model"}.get(
            (given or [""])[0], ""
        )
        source.add_error((*path, "context_window"), f"has no effect for this agent{where}", at_key=True)
    if len(given) == 1 and given[0] in KINDS:
        for key in _OF_MODELS:
            if key in agent:
                source.add_error(
                    (*path, key), f"has no effect for an agent with {quote(given[0])}", at_key=True
                )


def _check_a2a(source: Source, path: Path) -> None:
    is_plain = isinstance(source.value(path), str)
    place: Path = path if is_plain else (*path, "url")
    url = source.value(place)
    if isinstance(url, str) and url.startswith(("http://", "https://")) and not is_server_url(url):
        source.add_error(place, "is not a valid URL")
    if not is_plain:
        check_headers(source, path)
    if find_spec("a2a") is None:
        source.add_error(path, "needs the extra 'a2a' (a2a-sdk is not installed)")


def check_code(
    source: Source, path: Path, folder: FilePath, import_member: ImportMember, imported: dict[str, Member]
) -> None:
    """Import the member that the agent at ``path`` names, unless it is in ``imported``."""
    for key, prefix in (("python", ""), ("component", COMPONENT)):
        name = source.value((*path, key))
        if isinstance(name, str) and f"{prefix}{name}" not in imported:
            _import(source, (*path, key), f"{prefix}{name}", folder, import_member, imported)
    window = (*path, "context_window")
    member = imported.get(str(source.value((*path, "python"))))
    if member is not None and sees_of(member) == "own" and source.value(window) is not None:
        source.add_error(window, "has no effect: the agent stores the conversation itself", at_key=True)


def _import(
    source: Source,
    place: Path,
    name: str,
    folder: FilePath,
    import_member: ImportMember,
    imported: dict[str, Member],
) -> None:
    try:
        imported[name] = import_member(name, folder)
        return
    except ConfigurationError as error:
        reason = error.message
    # The import runs code of the operator, which can raise anything; report it like other errors.
    except (Exception, SystemExit) as error:  # noqa: BLE001
        reason = f"the object cannot be used as an agent ({type(error).__name__})"
    # The value of a variable must not appear in the error message.
    reason = "the object cannot be loaded" if place in source.substituted else reason
    module = name.partition(":")[0]
    near = closest_match(module, sorted(file.stem for file in folder.glob("*.py")))
    source.add_error(place, reason, wrong=module, right=(near,) if near and near != module else ())


def kind_of(agent: Mapping[str, Any]) -> str | None:
    """Return the key of ``KINDS`` that the agent has."""
    return next((key for key in KINDS if key in agent), None)


def _copy_locations(source: Source, old: Path, new: Path) -> None:
    for places in (source.keys, source.values):
        for path, place in list(_below(places, old)):
            places[(*new, *path[len(old) :])] = place
    for path, raw in list(_below(source.substituted, old)):
        source.substituted[(*new, *path[len(old) :])] = raw
    source.invalid |= {(*new, *path[len(old) :]) for path in source.invalid if path[: len(old)] == old}


def _below(places: Mapping[Path, Any], top: Path) -> Iterator[tuple[Path, Any]]:
    return ((path, place) for path, place in places.items() if path[: len(top)] == top)
