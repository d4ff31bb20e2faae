"""From a request to a turn under way: find the team, recall the conversation, run the turn, keep what was said."""
