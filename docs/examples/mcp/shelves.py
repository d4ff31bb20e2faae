"""The shelves of a small library, as an MCP server over stdio."""

from typing import Annotated

from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations
from pydantic import Field

SHELVES = {"The Left Hand of Darkness": "B 12", "The Dispossessed": "B 13", "Moby-Dick": "A 4"}

server = MCPServer("shelves")


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def find_shelf(title: Annotated[str, Field(description="The exact title on the cover.")]) -> str:
    """Return the shelf of a book."""
    return SHELVES.get(title, "The library does not have this book.")


@server.tool()
def move_book(title: str, shelf: str) -> str:
    """Put a book on another shelf."""
    SHELVES[title] = shelf
    return f"{title} is on {shelf} now."


if __name__ == "__main__":
    server.run()
