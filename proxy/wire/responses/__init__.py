"""The Responses API: parser of requests, and encoder of the events of a turn."""
