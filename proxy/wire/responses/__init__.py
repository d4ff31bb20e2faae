"""The Responses API: one more way to ask a team, and one more encoder over the events of a turn."""
