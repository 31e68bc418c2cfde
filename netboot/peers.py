"""Who is calling: the socket's address, unless a trusted proxy speaks for someone else."""

import ipaddress
from collections.abc import Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from fleet.errors import SetupFailed

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_FORWARDED = b"x-forwarded-for"


def parse_networks(entries: Sequence[str]) -> tuple[Network, ...]:
    """The addresses and networks of the setting `trusted_proxies`. Raises SetupFailed."""
    try:
        return tuple(ipaddress.ip_network(entry, strict=False) for entry in entries)
    except ValueError as error:
        raise SetupFailed(
            f"MUSTER_TRUSTED_PROXIES: {error}.",
            remedy="Write addresses or networks, such as 10.0.0.2,10.1.0.0/24.",
        ) from error


def client_address(
    peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]
) -> str | None:
    """The caller's address, None when there is none to be had. Pure.

    `forwarded` holds the X-Forwarded-For headers in order. Only a trusted peer is believed, and
    of its list the right-most hop that is no trusted proxy itself; a hop that is no address ends
    the belief there.
    """
    address = _parse(peer or "")
    if address is None:
        return None
    hops = [hop.strip() for header in forwarded for hop in header.split(",")]
    while hops and _is_in(address, trusted):
        hop = _parse(hops.pop())
        if hop is None:
            break
        address = hop
    return str(address)


def source_of(address: str | None) -> str:
    """What a rate limit counts as one source: an IPv4 address, or an IPv6 network of 64 bits."""
    parsed = _parse(address or "")
    if isinstance(parsed, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


class Peers:
    """ASGI layer: puts the caller's address into the scope's `client`."""

    def __init__(self, app: ASGIApp, trusted: Sequence[Network]) -> None:
        self._app = app
        self._trusted = tuple(trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peer, port = scope.get("client") or (None, 0)
            forwarded = []
            if self._trusted:
                forwarded = [v.decode("latin-1") for k, v in scope["headers"] if k == _FORWARDED]
            address = client_address(peer, forwarded, self._trusted)
            scope["client"] = None if address is None else (address, port)
        await self._app(scope, receive, send)


def _parse(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A dual-stack socket shows IPv4 callers as ::ffff:a.b.c.d.
    return getattr(address, "ipv4_mapped", None) or address


def _is_in(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
