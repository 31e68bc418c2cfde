"""Sockets inside Linux network namespaces that `ip netns` made.

A socket belongs for its whole life to the namespace in which it was opened, so a process of
the host can serve and reach a namespace without an interface or a route between the two.
Entering a namespace needs CAP_SYS_ADMIN.

An entry of the setting `api_namespace_binds` reads `<netns-name>=<host>:<port>`, for instance
`muster-1a2b3c4d=10.213.0.1:8100`; an IPv6 host stands in square brackets.
"""

import ctypes
import ipaddress
import os
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fleet.errors import SetupFailed

NETNS_DIR = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_BACKLOG = 2048
_HIGHEST_PORT = 65_535

T = TypeVar("T")


@dataclass(frozen=True)
class NamespaceBind:
    """An address to listen on inside a named network namespace."""

    netns: str
    host: str
    port: int


def parse_namespace_bind(entry: str) -> NamespaceBind:
    """Read one entry of `api_namespace_binds`. Raises SetupFailed naming the entry."""
    netns, equals, address = entry.partition("=")
    host, colon, port = address.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not (equals and colon and _NAME.fullmatch(netns) and _is_address(host) and _is_port(port)):
        raise SetupFailed(
            f"{entry!r} in api_namespace_binds names no namespace, address and port.",
            remedy="Write <netns-name>=<address>:<port>, such as lab=10.213.0.1:8100.",
        )
    return NamespaceBind(netns, host, int(port))


def namespace_path(netns: str) -> Path:
    """The file that stands for a named network namespace."""
    return NETNS_DIR / netns


def run_in_namespace(netns: str, action: Callable[[], T]) -> T:
    """Call `action` in a short-lived thread inside the namespace and return its result.

    The calling thread never leaves its own namespace. Raises SetupFailed when the namespace
    does not exist or may not be entered, else whatever `action` raises.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def enter_and_act() -> None:
        try:
            _enter(netns)
            results.append(action())
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=enter_and_act, name=f"netns-{netns}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def open_listening_socket(netns: str, host: str, port: int) -> socket.socket:
    """A TCP socket that listens on host:port inside the namespace.

    Raises SetupFailed when the namespace cannot be entered or the address is taken.
    """

    def listen() -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)

    try:
        return run_in_namespace(netns, listen)
    except OSError as error:
        raise SetupFailed(
            f"Nothing can listen on {host} port {port} in the namespace {netns}: {error}.",
            remedy="Another process may hold the port, or the laboratory's network is down.",
        ) from error


def connect(netns: str, host: str, port: int, *, timeout: float) -> socket.socket:
    """A TCP connection made from inside the namespace; `timeout` in seconds stays set on it.

    Raises SetupFailed when the namespace cannot be entered, OSError when nobody answers.
    """
    return run_in_namespace(netns, lambda: socket.create_connection((host, port), timeout))


def _enter(netns: str) -> None:
    """Move the calling thread into the namespace; there is no way back but its end."""
    try:
        descriptor = os.open(namespace_path(netns), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SetupFailed(
            f"The network namespace {netns} cannot be opened: {error.strerror}.",
            remedy="`ip netns list` shows the namespaces of this host.",
        ) from error
    try:
        _setns(descriptor)
    except OSError as error:
        raise SetupFailed(
            f"The network namespace {netns} may not be entered: {error.strerror}.",
            remedy="Run this as root.",
        ) from error
    finally:
        os.close(descriptor)


def _setns(descriptor: int) -> None:
    setns = getattr(os, "setns", None)  # Python 3.12 and later
    if setns is not None:
        setns(descriptor, _CLONE_NEWNET)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 1 <= int(text[:6]) <= _HIGHEST_PORT
