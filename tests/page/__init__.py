"""The page in a real browser, over a running server."""
