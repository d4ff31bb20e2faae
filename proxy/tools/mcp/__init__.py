"""Tools of MCP servers: pinned by the operator, called over sessions that live in tasks of their own.

Only here is the SDK ``mcp`` imported, and only by ``session`` and what it stands on: it takes a second and 29 MiB,
which a server without MCP servers does not spend.
"""
