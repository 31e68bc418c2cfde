"""Archive files on disk, each fetched once however many machines ask for it at a time.

Only files that never change under their name are kept: the pool, and indices by hash. A file
appears under its name when it is whole, never before.
"""

import asyncio
import hashlib
import os
import re
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import httpx

_SEGMENT = re.compile(r"[A-Za-z0-9_+~@=,-][A-Za-z0-9_+~:@=,.-]{0,254}")
_BY_HASH = re.compile(r"(?:.*/)?by-hash/(?P<kind>MD5Sum|SHA1|SHA256|SHA512)/(?P<digest>[0-9a-f]+)")
_MAX_SEGMENTS = 32
_STALE_AFTER = 3600.0
_CHUNK = 1 << 18


class UpstreamFailed(Exception):
    """The mirror gave no usable answer; the text says what it did instead."""


class NotInArchive(Exception):
    """The mirror says that it has no such file."""


def check_path(path: str) -> str:
    """Return `path` if it can name a file of a Debian archive.

    Raises ValueError: empty, `.` or `..` parts, hidden names, any character that no archive
    uses, or too many parts. What passes is safe in a URL and below a folder.
    """
    parts = path.split("/")
    if len(parts) > _MAX_SEGMENTS or not all(_SEGMENT.fullmatch(part) for part in parts):
        raise ValueError("this is no path of a Debian archive")
    return path


def never_changes(path: str) -> bool:
    """Whether the archive keeps the content under this path the same for ever."""
    return path.startswith("pool/") or _BY_HASH.fullmatch(path) is not None


@dataclass
class ArchiveCache:
    """Files below `folder`, fetched with `client`; one per process and event loop."""

    folder: Path
    client: httpx.AsyncClient
    _fetches: dict[Path, asyncio.Task[None]] = field(default_factory=dict)

    async def get(self, archive: str, path: str, url: str) -> Path:
        """The whole file of a checked path, fetched from `url` unless it is here.

        A fetch outlives the request that began it. Raises NotInArchive, UpstreamFailed.
        """
        target = self.folder / archive / path
        if target.is_file():
            return target
        fetch = self._fetches.get(target)
        if fetch is None:
            fetch = asyncio.create_task(self._fetch(url, path, target))
            self._fetches[target] = fetch
            fetch.add_done_callback(lambda done: self._forget(target, done))
        await asyncio.shield(fetch)
        return target

    def remove_stale(self) -> None:
        """Remove parts of files that a killed process left; younger ones may be in use."""
        for part in self._incoming.glob("*"):
            if time.time() - part.stat().st_mtime > _STALE_AFTER:
                part.unlink(missing_ok=True)

    @property
    def _incoming(self) -> Path:
        return self.folder / ".incoming"

    def _forget(self, target: Path, fetch: "asyncio.Task[None]") -> None:
        del self._fetches[target]
        if not fetch.cancelled():
            fetch.exception()  # every waiter may have gone away; then nobody else asks

    async def _fetch(self, url: str, path: str, target: Path) -> None:
        self._incoming.mkdir(parents=True, exist_ok=True)
        part = self._incoming / uuid.uuid4().hex
        try:
            await self._download(url, part)
            await asyncio.to_thread(_put_in_place, part, target, path)
        except httpx.HTTPError as error:
            raise UpstreamFailed(f"{type(error).__name__} {error}".strip()) from error
        except OSError as error:
            raise UpstreamFailed(f"the cache cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)

    async def _download(self, url: str, part: Path) -> None:
        async with self.client.stream("GET", url) as response:
            _check_answer(response)
            with part.open("wb") as stream:
                async for chunk in response.aiter_raw(_CHUNK):
                    stream.write(chunk)
            announced = response.headers.get("content-length")
            if announced is not None and int(announced) != part.stat().st_size:
                raise UpstreamFailed(f"{part.stat().st_size} bytes came instead of {announced}")


def _check_answer(response: httpx.Response) -> None:
    if response.status_code == httpx.codes.NOT_FOUND:
        raise NotInArchive
    if response.status_code != httpx.codes.OK:
        raise UpstreamFailed(f"it answered {response.status_code}")
    if response.headers.get("content-type", "").startswith("text/html"):
        raise UpstreamFailed("it answered with a web page")


def _put_in_place(part: Path, target: Path, path: str) -> None:
    """Check a fetched file against the digest in its name, if any, and give it that name."""
    by_hash = _BY_HASH.fullmatch(path)
    if by_hash is not None:
        kind = by_hash["kind"].removesuffix("Sum").lower()
        with part.open("rb") as stream:
            digest = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False))
        if digest.hexdigest() != by_hash["digest"]:
            raise UpstreamFailed("its content does not have the digest of its name")
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    part.replace(target)
