"""Teams of agents: their definition, the models they think with, and the loop that lets one of them answer."""
