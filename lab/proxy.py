"""The laboratory's way out: Debian's two archives, cached, and nothing else.

`python -m lab.proxy` listens on the gateway inside the laboratory's namespace and connects
out from the host, so machines need no route to anywhere. They ask for

    http://<gateway>:3142/debian/…    http://<gateway>:3142/debian-security/…
"""

import contextlib
import logging
import socket
import ssl
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from fleet.errors import MusterError
from fleet.namespaces import open_listening_socket
from fleet.settings import Settings, load_settings
from lab.addresses import PROXY_PORT, lab_names, lab_subnet
from lab.mirror import Mirrors, find_mirrors
from lab.proxy_cache import ArchiveCache, NotInArchive, UpstreamFailed, check_path, never_changes
from lab.proxy_process import record_proxy

log = logging.getLogger(__name__)

_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_PASSED_ON = ("if-modified-since", "if-none-match")
_PASSED_BACK = ("content-type", "content-length", "last-modified", "etag")
_PASSED_STATUS = frozenset({200, 304, 404})


@dataclass(frozen=True)
class Archives:
    """The handlers' tools: where each archive is, the files at hand, the way out."""

    mirrors: dict[str, str]
    cache: ArchiveCache
    client: httpx.AsyncClient

    async def answer(self, request: Request) -> Response:
        """Answer GET and HEAD for `/<archive>/<path>`."""
        archive, path = request.path_params["archive"], request.path_params["path"]
        mirror = self.mirrors.get(archive)
        if mirror is None:
            return _say(404, f"Only {' and '.join(f'/{name}/' for name in self.mirrors)} are here.")
        try:
            url = f"{mirror}/{check_path(path)}"
        except ValueError as error:
            return _say(400, f"Refused: {error}.")
        try:
            if never_changes(path):
                return FileResponse(await self.cache.get(archive, path, url))
            return await self._pass_through(request, url)
        except NotInArchive:
            return _say(404, f"The mirror has no /{archive}/{path}.")
        except UpstreamFailed as error:
            log.warning("%s: %s", url, error)
            return _say(502, f"The mirror failed for /{archive}/{path}: {error}.")

    async def _pass_through(self, request: Request, url: str) -> Response:
        """Fetch what changes, such as InRelease, anew for each request."""
        headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
        try:
            outgoing = self.client.build_request(request.method, url, headers=headers)
            upstream = await self.client.send(outgoing, stream=True)
        except httpx.HTTPError as error:
            raise UpstreamFailed(f"{type(error).__name__} {error}".strip()) from error
        if upstream.status_code not in _PASSED_STATUS:
            await upstream.aclose()
            raise UpstreamFailed(f"it answered {upstream.status_code}")
        back = {name: upstream.headers[name] for name in _PASSED_BACK if name in upstream.headers}
        return StreamingResponse(_body(upstream), status_code=upstream.status_code, headers=back)


def make_app(mirrors: Mirrors, cache: ArchiveCache) -> Starlette:
    """The proxy as an ASGI application. It closes the cache's client when it ends."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        cache.remove_stale()
        yield
        await cache.client.aclose()

    by_name = {"debian": mirrors.debian, "debian-security": mirrors.security}
    archives = Archives(by_name, cache, cache.client)
    routes = [
        Route("/healthz", _healthz, methods=["GET"]),
        Route("/{archive}/{path:path}", archives.answer, methods=["GET"]),  # and HEAD
    ]
    return Starlette(routes=routes, lifespan=lifespan)


def make_client() -> httpx.AsyncClient:
    """The way out: the host's certificates and the host's own HTTP proxy, if it has one."""
    return httpx.AsyncClient(
        timeout=_TIMEOUT,
        verify=ssl.create_default_context(),
        follow_redirects=True,
        headers={"Accept-Encoding": "identity", "User-Agent": "muster-lab"},
    )


def listen(settings: Settings) -> socket.socket:
    """The proxy's socket on the gateway. Raises SetupFailed when the network is down."""
    netns = lab_names(settings.home).netns
    return open_listening_socket(netns, lab_subnet(settings).gateway, PROXY_PORT)


def main(arguments: list[str]) -> int:
    """Serve until SIGTERM; `--standalone` says that no supervisor stands behind."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    settings = load_settings()
    try:
        mirrors = find_mirrors(settings)
        opened = listen(settings)
        record_proxy(settings, standalone="--standalone" in arguments)
    except MusterError as error:
        log.error("%s", error)
        return 1
    cache = ArchiveCache(settings.cache_dir / "archives", make_client())
    config = uvicorn.Config(
        make_app(mirrors, cache), log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    uvicorn.Server(config).run(sockets=[opened])
    return 0


async def _healthz(_: Request) -> Response:
    return PlainTextResponse("muster lab proxy\n")


async def _body(upstream: httpx.Response) -> AsyncIterator[bytes]:
    """Pass bytes on; breaking off shows the client that the rest is missing."""
    try:
        async for chunk in upstream.aiter_raw():
            yield chunk
    finally:
        await upstream.aclose()


def _say(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status_code=status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
