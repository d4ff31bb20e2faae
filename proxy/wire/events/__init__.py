"""Frames of event streams: SSE, WebSocket, the event feed."""
