"""The laboratory's proxy between real HTTP on both sides, with every fault of a mirror."""

import contextlib
import hashlib
import http.client
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
import uvicorn

from lab.mirror import Mirrors
from lab.proxy import make_app, make_client
from lab.proxy_cache import ArchiveCache

DEB = b"!<arch>\nthis is a package\n" * 1000
INDEX = b"Package: jq\n"
INDEX_PATH = f"dists/trixie/by-hash/SHA256/{hashlib.sha256(INDEX).hexdigest()}"
BINARY = "application/octet-stream"
ANSWERS = {
    "missing.deb": (404, b"no such file", BINARY),
    "broken.deb": (500, b"secrets of the mirror", BINARY),
    "portal.deb": (200, b"<html>log in", "text/html; charset=utf-8"),
}
WRONG_PATH = f"dists/trixie/by-hash/SHA256/{'0' * 64}"


@dataclass
class Mirror:
    """A mirror on loopback that counts what it is asked and fails by the path's name."""

    url: str = ""
    asked: Counter[str] = field(default_factory=Counter)
    release: threading.Event = field(default_factory=threading.Event)


def _handler(mirror: Mirror) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            mirror.asked[self.path] += 1
            name = self.path.rpartition("/")[2]
            if name == "slow.deb":
                mirror.release.wait(20)
            if name == "InRelease" and self.headers.get("If-Modified-Since"):
                self._answer(304, b"")
            elif name == "short.deb":
                self._answer(200, DEB, length=len(DEB) * 2)
                self.close_connection = True
            else:
                status, body, kind = ANSWERS.get(name, (200, DEB, BINARY))
                self._answer(status, INDEX if "by-hash" in self.path else body, content_type=kind)

        def do_HEAD(self) -> None:
            self.do_GET()

        def _answer(
            self,
            status: int,
            body: bytes,
            *,
            length: int | None = None,
            content_type: str = BINARY,
        ) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length or len(body)))
            self.send_header("Content-Type", content_type)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
            return

    return Handler


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    mirror = Mirror()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(mirror))
    mirror.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield mirror
    mirror.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "archives"


@pytest.fixture
def proxy(mirror: Mirror, cache_dir: Path) -> Iterator[httpx.Client]:
    """A client of a proxy that takes both archives from the mirror."""
    yield from serve_proxy(Mirrors(f"{mirror.url}/d", f"{mirror.url}/s"), cache_dir)


def serve_proxy(mirrors: Mirrors, cache_dir: Path) -> Iterator[httpx.Client]:
    app = make_app(mirrors, ArchiveCache(cache_dir, make_client()))
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    port = listener.getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client
    server.should_exit = True
    thread.join()
    listener.close()


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_package_is_fetched_once_and_kept(
    proxy: httpx.Client, mirror: Mirror, cache_dir: Path
) -> None:
    """The second answer comes from disk, whole and the same."""
    answers = [proxy.get("/debian/pool/a/one.deb") for _ in range(2)]
    assert [(200, DEB)] * 2 == [(answer.status_code, answer.content) for answer in answers]
    assert {"/d/pool/a/one.deb": 1} == mirror.asked
    assert {"debian/pool/a/one.deb"} == files_in(cache_dir)


def test_the_two_archives_are_kept_apart(proxy: httpx.Client, mirror: Mirror) -> None:
    """The same path in Debian's main and security archives is two files."""
    for archive in ("debian", "debian-security"):
        assert 200 == proxy.get(f"/{archive}/pool/a/one.deb").status_code
    assert {"/d/pool/a/one.deb": 1, "/s/pool/a/one.deb": 1} == mirror.asked


def test_many_at_once_cause_one_fetch(proxy: httpx.Client, mirror: Mirror) -> None:
    """Machines that ask for the same package at the same time share one fetch."""
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(proxy.get, "/debian/pool/a/slow.deb") for _ in range(12)]
        _wait_for(lambda: mirror.asked["/d/pool/a/slow.deb"] == 1)
        mirror.release.set()
        answers = [answer.result() for answer in asked]
    assert {(200, DEB)} == {(answer.status_code, answer.content) for answer in answers}
    assert 1 == mirror.asked["/d/pool/a/slow.deb"]


def test_nothing_is_served_before_it_is_whole(
    proxy: httpx.Client, mirror: Mirror, cache_dir: Path
) -> None:
    """A client that goes away in the middle leaves no half file under the name, and the fetch
    goes on for the next one."""
    with pytest.raises(httpx.ReadTimeout):
        proxy.get("/debian/pool/a/slow.deb", timeout=0.3)
    assert not (cache_dir / "debian/pool/a/slow.deb").exists()
    mirror.release.set()
    assert DEB == proxy.get("/debian/pool/a/slow.deb").content
    assert 1 == mirror.asked["/d/pool/a/slow.deb"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("pool/a/missing.deb", 404, "has no"),
        ("pool/a/broken.deb", 502, "answered 500"),
        ("pool/a/portal.deb", 502, "web page"),
        ("pool/a/short.deb", 502, "failed"),
        (WRONG_PATH, 502, "digest"),
        ("dists/trixie/broken.deb", 502, "answered 500"),
    ],
)
def test_a_mirror_that_fails_leaves_nothing_in_the_cache(
    proxy: httpx.Client, cache_dir: Path, path: str, status: int, words: str
) -> None:
    """The answer says what the mirror did; its body is not passed on; nothing is kept."""
    answer = proxy.get(f"/debian/{path}")
    assert (status, True) == (answer.status_code, words in answer.text)
    assert "secrets" not in answer.text
    assert set() == files_in(cache_dir)


def test_a_mirror_that_is_away_is_a_502(cache_dir: Path) -> None:
    """Without a mirror, what is cached is served and the rest is a clear failure."""
    kept = cache_dir / "debian/pool/a/kept.deb"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(DEB)
    nowhere = Mirrors("http://127.0.0.1:9/debian", "http://127.0.0.1:9/security")
    for proxy in serve_proxy(nowhere, cache_dir):
        assert DEB == proxy.get("/debian/pool/a/kept.deb").content
        for path in ("pool/a/one.deb", "dists/trixie/InRelease"):
            answer = proxy.get(f"/debian/{path}")
            assert (502, True) == (answer.status_code, "ConnectError" in answer.text)


def test_a_cache_that_cannot_be_written_is_a_502(proxy: httpx.Client, cache_dir: Path) -> None:
    """A file where a folder must be stands for a full or broken disk."""
    cache_dir.mkdir(parents=True)
    (cache_dir / "debian").write_text("in the way")
    answer = proxy.get("/debian/pool/a/one.deb")
    assert (502, True) == (answer.status_code, "cache cannot be written" in answer.text)


def test_indices_by_hash_are_kept_and_others_asked_anew(
    proxy: httpx.Client, mirror: Mirror
) -> None:
    """What can change is asked for each time, with the client's own condition."""
    for _ in range(2):
        assert INDEX == proxy.get(f"/debian/{INDEX_PATH}").content
        assert DEB == proxy.get("/debian/dists/trixie/InRelease").content
    since = {"If-Modified-Since": "Tue, 24 Nov 2026 00:00:00 GMT"}
    assert 304 == proxy.get("/debian/dists/trixie/InRelease", headers=since).status_code
    assert mirror.asked == {f"/d/{INDEX_PATH}": 1, "/d/dists/trixie/InRelease": 3}


def test_head_tells_the_size(proxy: httpx.Client) -> None:
    """HEAD answers like GET, without the body."""
    for path in ("pool/a/one.deb", "dists/trixie/InRelease"):
        answer = proxy.head(f"/debian/{path}")
        assert (200, str(len(DEB))) == (answer.status_code, answer.headers["content-length"])


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/debian/../../etc/passwd", 400),
        ("/debian/%2e%2e/%2e%2e/etc/passwd", 400),
        ("/debian/pool/..%2f..%2fetc/passwd", 400),
        ("/debian/pool/%00", 400),
        ("/debian/pool/a%0d%0aHost:x", 404),
        ("/debian//etc/passwd", 400),
        ("/debian/.incoming/x", 400),
        ("/other/pool/x", 404),
        ("/etc/passwd", 404),
        ("/", 404),
        ("http://elsewhere.example/other/x", 404),
    ],
)
def test_only_paths_of_the_two_archives_are_answered(
    proxy: httpx.Client, mirror: Mirror, target: str, status: int
) -> None:
    """No request leads out of the cache folder, or upstream to anywhere else."""
    connection = http.client.HTTPConnection(proxy.base_url.host, proxy.base_url.port or 0)
    with contextlib.closing(connection):
        connection.request("GET", target)
        assert status == connection.getresponse().status
    assert {} == mirror.asked


def test_parts_that_a_killed_proxy_left_are_removed(mirror: Mirror, cache_dir: Path) -> None:
    """Old parts go when a proxy starts; young ones may be another proxy's and stay."""
    incoming = cache_dir / ".incoming"
    incoming.mkdir(parents=True)
    (incoming / "old").write_text("half")
    (incoming / "young").write_text("half")
    os.utime(incoming / "old", (1, 1))
    for proxy in serve_proxy(Mirrors(mirror.url, mirror.url), cache_dir):
        assert 200 == proxy.get("/healthz").status_code
    assert {"young"} == files_in(incoming)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
