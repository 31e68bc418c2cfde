"""One thread that writes for many callers: whoever waits goes into one transaction.

A commit with `synchronous=FULL` costs a wait for the disk. Calls that arrive while one commit
is under way share the next, so a burst costs a few waits instead of one each. Every caller gets
its result after the commit that holds it, never before.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from fleet.registry import Registry

T = TypeVar("T")

_MAX_BATCH = 64


@dataclass(frozen=True)
class _Work:
    action: Callable[[Session], Any]
    future: Future[Any] = field(default_factory=Future)


class GroupWriter:
    """Runs functions of a session in shared transactions of the registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: queue.SimpleQueue[_Work | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._guard = threading.Lock()
        self._closed = False

    async def run(self, action: Callable[[Session], T]) -> T:
        """The result of `action` once it is committed; what it raises is raised here.

        The action may be run again in a transaction of its own when one it shared has failed, so
        it must have no effect but on the session.
        """
        work = _Work(action)
        with self._guard:
            if self._closed:
                raise RuntimeError("the writer is closed")
            self._start()
            self._waiting.put(work)
        return await asyncio.wrap_future(work.future)

    def close(self) -> None:
        """Write what is waiting, then stop."""
        with self._guard:
            self._closed = True
            self._waiting.put(None)
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="writer", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first, *self._others()]
            self._write([work for work in batch if work.future.set_running_or_notify_cancel()])

    def _others(self) -> list[_Work]:
        found: list[_Work] = []
        while len(found) < _MAX_BATCH - 1:
            try:
                work = self._waiting.get_nowait()
            except queue.Empty:
                break
            if work is None:
                self._waiting.put(None)
                break
            found.append(work)
        return found

    def _write(self, batch: list[_Work]) -> None:
        try:
            with self._registry.write() as session:
                results = [work.action(session) for work in batch]
        except Exception as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            # One of them failed; alone, each gets an answer of its own.
            for work in batch:
                self._write([work])
            return
        for work, result in zip(batch, results, strict=True):
            work.future.set_result(result)
