"""Tools of MCP servers: pinned by the operator, called over sessions that run in separate tasks.

Only ``session`` and the modules that it imports import the SDK ``mcp``, which takes a second and 29 MiB. A server
without MCP servers does not load it.
"""
