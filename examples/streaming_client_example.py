"""Follow a team while it works on a question: a client of ``POST /ask-stream`` in plain Python.

    python examples/streaming_client_example.py "Which product sold best last month?"
    python examples/streaming_client_example.py test

With ``test`` the server plays a scripted turn and calls no model. ``HANDOFF_PROXY_URL`` is the address of the server,
by default http://127.0.0.1:8000; ``HANDOFF_PROXY_KEY`` is its API key, if it needs one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

URL = os.environ.get("HANDOFF_PROXY_URL", "http://127.0.0.1:8000").rstrip("/")
KEY = os.environ.get("HANDOFF_PROXY_KEY", "")
QUESTION = "Which product sold best last month?"
WIDTH = 20


def request_for(argument: str) -> urllib.request.Request:
    """Return the request: the scripted turn for ``test``, otherwise the question."""
    headers = {"Authorization": f"Bearer {KEY}"} if KEY else {}
    if argument == "test":
        return urllib.request.Request(f"{URL}/test-stream", headers=headers)
    headers["Content-Type"] = "application/json"
    body = json.dumps({"question": argument}).encode()
    return urllib.request.Request(f"{URL}/ask-stream", data=body, headers=headers)


def events(request: urllib.request.Request) -> Iterator[dict[str, Any]]:
    """Yield the events of the response. Lines that do not begin with ``data:`` are comments and event ids."""
    with urllib.request.urlopen(request, timeout=300) as response:
        for line in response:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))["event"]


def shown(event: dict[str, Any]) -> str:
    """Return an event as a line: progress, agent, and what happened."""
    percent = event["data"].get("progress", 0)
    bar = "#" * (percent * WIDTH // 100)
    return f"[{bar:<{WIDTH}}] {percent:3}%  {event['agent_name']}: {event['message']}"


def main() -> int:
    """Print the events and the answer; return 1 if there is none."""
    parser = argparse.ArgumentParser(description="Follow a team while it works on a question.")
    parser.add_argument(
        "question", nargs="*", help="the question, or test for a scripted turn without a model"
    )
    question = " ".join(parser.parse_args().question) or QUESTION
    try:
        for event in events(request_for(question)):
            if event["event_type"] == "completed":
                print(shown(event))
                print(f"\n{event['data']['final_response']}")
                return 0
            print(shown(event), flush=True)
            if event["event_type"] == "error":
                return 1
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {json.load(error)['error']['message']}", file=sys.stderr)
    except OSError as error:
        print(f"No connection to {URL}: {error}", file=sys.stderr)
    else:
        print("The stream ended without an answer.", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
