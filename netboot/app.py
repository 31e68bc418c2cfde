"""The API as one ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from fleet.registry import Registry
from fleet.settings import Settings
from netboot import call_home, docs, first_boot_route, health, jobs, machines, problems
from netboot.boundary import Boundary
from netboot.limits import BodyLimit, RateLimit, parse_rate
from netboot.metrics import CountRequests, Metrics
from netboot.orchestrator import Orchestrator
from netboot.outbox import Outbox
from netboot.peers import Peers, parse_networks
from netboot.services import Services
from netboot.writer import GroupWriter

TITLE = "Muster"
VERSION = "1"
DESCRIPTION = """\
What machines and operators say to Muster's control plane. Errors are RFC 9457 problem documents
whose `remedy` says what to do next; every answer carries its request's id in `X-Request-ID`.
"""


def create_app(
    settings: Settings,
    registry: Registry,
    orchestrator: Orchestrator,
    outbox: Outbox | None = None,
) -> FastAPI:
    """The application. The caller opens and closes what is passed in.

    Raises SetupFailed when a setting does not fit.
    """
    services = Services(
        settings, registry, orchestrator, outbox, GroupWriter(registry), Metrics(registry)
    )
    app = FastAPI(
        title=TITLE, version=VERSION, description=DESCRIPTION, lifespan=_lifespan,
        # Their pages load scripts from the internet; netboot.docs has one that does not.
        docs_url=None, redoc_url=None,
    )  # fmt: skip
    app.state.services = services
    for room in (call_home, jobs, machines, first_boot_route, health, docs):
        app.include_router(room.router)
    problems.install(app)
    # The last one added is the outermost.
    app.add_middleware(BodyLimit, limit=settings.body_limit)
    app.add_middleware(RateLimit, rate=parse_rate(settings.rate_limit))
    app.add_middleware(Peers, trusted=parse_networks(settings.trusted_proxies))
    app.add_middleware(Boundary)
    app.add_middleware(CountRequests, metrics=services.metrics)
    _document_problems(app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    app.state.services.writer.close()


def _document_problems(app: FastAPI) -> None:
    """Give the OpenAPI document the schema that every error answer refers to."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            template = "#/components/schemas/{model}"
            problem = problems.Problem.model_json_schema(ref_template=template)
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas |= problem.pop("$defs") | {"Problem": problem}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
