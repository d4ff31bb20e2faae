"""Teams of agents: their definition, the models they think with, and the loop that lets one of them answer."""

from proxy.lazy_imports import postpone

# Before a module of this package imports autogen-core.
postpone()
