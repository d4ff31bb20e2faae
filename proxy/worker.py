"""One server process: the only one, or a worker of the supervisor."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from proxy.connection_share import SharedSockets
from proxy.errors import ConfigurationError
from proxy.lazy_imports import imports_of_server
from proxy.log_config import configure_logging
from proxy.server_file import server_file
from proxy.start_check import Start, with_all_problems

if TYPE_CHECKING:
    from proxy.supervisor import Facts

VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


def serve_process(
    start: Start,
    sockets: Sequence[socket.socket] | SharedSockets,
    on_started: Callable[[Facts], None],
    *,
    reloads: bool = False,
) -> None:
    """Prepare the database and serve on the bound sockets until a signal ends it.

    With ``reloads``, this is the whole server, and SIGHUP reloads the team files. ``on_started`` gets the teams (names)
    and models (by name) when connections are accepted.

    Raises:
        ConfigurationError: The application cannot start with these settings.
    """
    with imports_of_server():
        from proxy.app import create_app, prepare
        from proxy.server import serve_forever

    settings = start.settings
    try:
        # The database is changed only if the team files have no errors.
        app = create_app(settings, environment=start.variables)
        prepare(settings)
    except ConfigurationError as error:
        raise with_all_problems(start, error, address="none") from None
    facts = {"teams": app.state.teams, "models": app.state.models}
    with ExitStack() as stack:
        own = stack.enter_context(server_file(settings.data_dir)) if reloads else None
        serve_forever(
            app,
            settings,
            sockets,
            on_started=lambda: on_started(facts),
            on_reload=own.report if own is not None else None,
        )


def serve_worker(
    flags: Mapping[str, Any], sockets: SharedSockets, on_started: Callable[[Facts], None]
) -> None:
    """Serve as a worker. The settings are read again, so that a restarted worker uses a changed ``.env``."""
    start = Start.read(**flags)
    try:
        if start.problems:
            raise with_all_problems(start, address="none")
        settings = start.settings
        configure_logging(settings.log_level, stream_events=settings.stream_events)
        serve_process(start, sockets, on_started)
    except ConfigurationError as error:
        from proxy.supervisor import CONFIGURATION_EXIT_CODE

        sys.stderr.write(f"{error.message}\n")
        sys.exit(CONFIGURATION_EXIT_CODE)


@contextmanager
def shared_counters() -> Iterator[Callable[[int], None]]:
    """Let the workers that start in this block count together, so that ``/metrics`` of each shows the sum.

    Gives a function to call with the process id of a worker that ended: its gauges are removed. If
    PROMETHEUS_MULTIPROC_DIR is set, that folder is used. See "Multiprocess Mode" of prometheus_client, which reads the
    variable in each worker at import.
    """
    with TemporaryDirectory(prefix="handoff-proxy-") as folder:
        is_set = VARIABLE in os.environ
        os.environ.setdefault(VARIABLE, folder)

        def forget(worker: int) -> None:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(worker, os.environ[VARIABLE])  # type: ignore[no-untyped-call]

        try:
            yield forget
        finally:
            if not is_set:
                del os.environ[VARIABLE]
