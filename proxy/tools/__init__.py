"""The public interface for authors of tools: ``from proxy.tools import Context, ToolError, tool``.

These names and their signatures change only with a new major version. The modules of this package are internal.
"""

from proxy.errors import ToolError
from proxy.tools.functions import tool
from proxy.tools.port import ToolContext as Context

__all__ = ["Context", "ToolError", "tool"]
