"""The body limit as an ASGI layer, fed with messages by hand."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from netboot.limits import BodyLimit
from netboot.problems import BodyTooLarge, BodyTooSlow


def _send_through(
    messages: list[Message], *, headers: tuple[tuple[bytes, bytes], ...] = (), seconds: float = 5
) -> list[bytes]:
    """The bodies that reach the application behind a limit of 10 bytes."""
    seen: list[bytes] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["body"])

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        return await asyncio.Event().wait()

    async def send(message: Message) -> None:
        raise AssertionError("the limit itself answers nothing")

    layer = BodyLimit(application, limit=10, seconds=seconds)
    asyncio.run(layer({"type": "http", "headers": headers}, receive, send))
    return seen


def _part(body: bytes, *, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_at_the_limit_passes_whole() -> None:
    """Chunks up to the limit reach the application as one body."""
    assert [b"0123456789"] == _send_through([_part(b"01234", more=True), _part(b"56789")])


def test_a_body_over_the_limit_is_refused() -> None:
    """One byte more is too large, in one piece or in many."""
    with pytest.raises(BodyTooLarge):
        _send_through([_part(b"01234567890")])
    with pytest.raises(BodyTooLarge):
        _send_through([_part(b"x" * 6, more=True), _part(b"x" * 6, more=True)])


def test_an_announced_excess_is_refused_unread() -> None:
    """A Content-Length over the limit is enough to refuse."""
    with pytest.raises(BodyTooLarge):
        _send_through([], headers=((b"content-length", b"11"),))


def test_a_body_that_does_not_end_in_time_is_refused() -> None:
    """A caller that dribbles its body is not waited for without end."""
    with pytest.raises(BodyTooSlow):
        _send_through([_part(b"x", more=True)], seconds=0.05)


def test_a_caller_who_left_is_forgotten() -> None:
    """A disconnect before the body's end calls nothing."""
    assert [] == _send_through([_part(b"x", more=True), {"type": "http.disconnect"}])
