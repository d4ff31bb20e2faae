"""Tools of the team in team.yaml. The model receives the name, the docstring and the typed parameters of each."""

from typing import Annotated

from proxy.tools import Context, ToolError, tool

ROOMS = {"accounting": "first floor, room 12", "library": "ground floor, room 3"}


# has_effects=False: a call changes nothing, so that it can be repeated.
@tool(has_effects=False)
def find_room(
    name: Annotated[str, "The name of the room, for example library."], context: Context
) -> dict[str, str]:
    """Find a room of the office."""
    room = ROOMS.get(name.strip().lower())
    if room is None:
        # The model receives this message and can call the tool again.
        raise ToolError(f"there is no room {name!r}; the rooms are {', '.join(ROOMS)}")
    # context has the caller, the conversation, a folder for data, and a key that identifies this call.
    return {"room": room, "found_by": context.agent}
