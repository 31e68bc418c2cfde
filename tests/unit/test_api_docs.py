"""The API's documentation page, made from its OpenAPI document."""

import re
from collections.abc import Iterator

import pytest
from fastapi import FastAPI

from fleet.registry import open_registry
from fleet.settings import Settings
from netboot import docs
from netboot.app import create_app
from netboot.orchestrator import Orchestrator


@pytest.fixture
def app(settings: Settings, sqlite_url: str) -> Iterator[FastAPI]:
    registry = open_registry(sqlite_url)
    orchestrator = Orchestrator(settings)
    yield create_app(settings, registry, orchestrator)
    orchestrator.close()
    registry.close()


def test_the_page_shows_every_endpoint(app: FastAPI) -> None:
    """Each method and path of the OpenAPI document has its section, with all its answers."""
    document = app.openapi()
    shown = re.findall(r"<h2><b>(\w+)</b> (\S+)</h2>", docs.render(document))
    assert [
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    ] == shown


def test_every_endpoint_says_what_it_does(app: FastAPI) -> None:
    """No endpoint is without a description, nor one that takes a body without an example."""
    for operation in docs.operations(app.openapi()):
        assert operation.text, operation.path
    with_bodies = [o for o in docs.operations(app.openapi()) if o.request_example]
    assert {"/api/v1/call-home", "/api/v1/machines"} == {o.path for o in with_bodies}


def test_the_page_loads_nothing_from_elsewhere(app: FastAPI) -> None:
    """The page works without the internet: no script, and no address but its own."""
    page = docs.render(app.openapi())
    assert "<script" not in page
    assert ["/openapi.json"] == re.findall(r'(?:href|src)="([^"]*)"', page)


def test_what_the_document_says_stays_text() -> None:
    """A description with markup in it is shown, not run."""
    hostile = "<img src=x onerror=alert(1)>"
    page = docs.render(
        {
            "info": {"title": hostile, "description": hostile},
            "components": {"securitySchemes": {}, "schemas": {}},
            "paths": {"/x": {"get": {"description": hostile, "responses": {}}}},
        }
    )
    assert "<img" not in page
