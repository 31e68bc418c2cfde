"""`python -m netboot.serve`: the API's process, with the outbox and the reconciler in it."""

import errno
import logging
import signal
import socket
import sys
from contextlib import ExitStack
from types import FrameType

import uvicorn
from pydantic import ValidationError

from fleet.errors import MusterError, SetupFailed
from fleet.namespaces import open_listening_socket, parse_namespace_bind
from fleet.registry import open_registry
from fleet.settings import Settings, load_settings
from netboot.app import create_app
from netboot.orchestrator import Orchestrator
from netboot.outbox import Outbox
from netboot.reconciler import Reconciler

logger = logging.getLogger(__name__)

_BACKLOG = 2048
_SHUTDOWN_SECONDS = 10
# How long a busy thread may keep the interpreter when another wants it. The event loop asks anew
# after each of its many short system calls, and would wait Python's 5 ms for the writer each time.
_SWITCH_SECONDS = 0.0005


def open_sockets(settings: Settings) -> list[socket.socket]:
    """The listening sockets: the host's own, then one for each bind in a namespace.

    Raises SetupFailed, naming the address and the setting that changes it.
    """
    sockets = [_listen(settings.api_host, settings.api_port)]
    try:
        for entry in settings.api_namespace_binds:
            bind = parse_namespace_bind(entry)
            sockets.append(open_listening_socket(bind.netns, bind.host, bind.port))
    except SetupFailed:
        for opened in sockets:
            opened.close()
        raise
    return sockets


def run(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM. Raises SetupFailed when it cannot begin."""
    sys.setswitchinterval(_SWITCH_SECONDS)
    with ExitStack() as opened:
        sockets = open_sockets(settings)
        for each in sockets:
            opened.callback(each.close)
        registry = open_registry(settings.registry_url)
        opened.callback(registry.close)
        orchestrator = Orchestrator(settings)
        opened.callback(orchestrator.close)
        outbox = Outbox(settings, registry, orchestrator)
        reconciler = Reconciler(settings, registry, orchestrator)
        server = uvicorn.Server(_config(create_app(settings, registry, orchestrator, outbox)))
        # uvicorn raises the signal that ended it once more; what is open must still be closed.
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, _noted)
        for thread in (outbox, reconciler):
            thread.start()
            opened.callback(thread.stop)
        server.run(sockets=sockets)


def main() -> int:
    """Run with the settings of the environment; the result is the exit status."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # httpx tells of every request to Prefect.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        run(load_settings())
    except MusterError as error:
        logger.error("%s", error)
        return 1
    except ValidationError as error:
        # Not the values: one of them may be a secret.
        for each in error.errors():
            name = "_".join(str(part) for part in each["loc"]).upper()
            logger.error("MUSTER_%s: %s", name, each["msg"])
        return 1
    return 0


def _config(app: object) -> uvicorn.Config:
    return uvicorn.Config(
        app,  # type: ignore[arg-type]
        access_log=False,
        log_config=None,
        # Who is calling is decided by netboot.peers.
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
    )


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SetupFailed(
                f"Port {port} on {host} is in use by another program.",
                remedy="Stop it, or choose another port with MUSTER_API_PORT.",
            ) from error
        raise SetupFailed(
            f"Nothing can listen on {host} port {port}: {error.strerror or error}.",
            remedy="MUSTER_API_HOST and MUSTER_API_PORT set where the API listens.",
        ) from error


def _noted(signum: int, frame: FrameType | None) -> None:
    del frame
    logger.info("stopped by %s", signal.Signals(signum).name)


if __name__ == "__main__":
    sys.exit(main())
