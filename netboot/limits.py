"""Limits at the door: how often one source may ask, how much a body may hold, how long it takes."""

import asyncio
import math
import time

import limits
from limits.strategies import FixedWindowRateLimiter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fleet.errors import SetupFailed
from netboot import problems
from netboot.counters import Counters
from netboot.peers import source_of

# Monitoring must see a control node that is being flooded.
EXEMPT_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
BODY_SECONDS = 30.0


def parse_rate(text: str) -> limits.RateLimitItem:
    """The setting `rate_limit`, such as `120/minute`. Raises SetupFailed."""
    try:
        return limits.parse(text)
    except ValueError as error:
        raise SetupFailed(
            f"MUSTER_RATE_LIMIT: {text!r} is no rate.", remedy="Write for instance 120/minute."
        ) from error


class RateLimit:
    """ASGI layer: answers 429 to a source that asks more often than `rate`."""

    def __init__(self, app: ASGIApp, rate: limits.RateLimitItem) -> None:
        self._app = app
        self._rate = rate
        self._limiter = FixedWindowRateLimiter(Counters())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in EXEMPT_PATHS:
            client = scope.get("client")
            self._count(source_of(client[0] if client else None))
        await self._app(scope, receive, send)

    def _count(self, source: str) -> None:
        if self._limiter.hit(self._rate, source):
            return
        reset = self._limiter.get_window_stats(self._rate, source).reset_time
        wait = max(1, math.ceil(reset - time.time()))
        raise problems.TooManyRequests(
            f"More than {self._rate} came from {source}.",
            remedy=f"Wait {wait} s. The operator sets the limit with MUSTER_RATE_LIMIT.",
            retry_after=wait,
        )


class BodyLimit:
    """ASGI layer: reads a request's body, at most `limit` bytes, before the application runs.

    Counting what arrives, not what Content-Length says, holds for chunked bodies as well.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float = BODY_SECONDS) -> None:
        self._app = app
        self._limit = limit
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        self._check(_announced(scope))
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(receive)
        except TimeoutError as error:
            raise problems.BodyTooSlow(
                f"The body was not complete after {self._seconds:.0f} s.",
                remedy="Send the request again.",
            ) from error
        if body is None:
            return  # the client left; nobody waits for an answer
        replay: Message | None = {"type": "http.request", "body": body, "more_body": False}

        async def receive_again() -> Message:
            nonlocal replay
            if replay is None:
                return await receive()
            message, replay = replay, None
            return message

        await self._app(scope, receive_again, send)

    async def _read(self, receive: Receive) -> bytes | None:
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return None
            chunk = message.get("body", b"")
            size += len(chunk)
            self._check(size)
            chunks.append(chunk)
            if not message.get("more_body", False):
                return b"".join(chunks)

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise problems.BodyTooLarge(
                f"A body may hold {self._limit} bytes.",
                remedy="Send less. The operator sets the limit with MUSTER_BODY_LIMIT.",
            )


def _announced(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:20])
    return 0
