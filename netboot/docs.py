"""GET /docs: the API's documentation as one page, without a script or anything from elsewhere."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from pydantic import BaseModel, ConfigDict
from starlette.responses import HTMLResponse

PATH = "/docs"
_TEMPLATES = Path(__file__).resolve().parent / "templates"
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}

router = APIRouter(include_in_schema=False)


class Parameter(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    place: str
    text: str


class Operation(BaseModel):
    """One endpoint as the page shows it; examples are JSON, empty where there is none."""

    model_config = ConfigDict(frozen=True)

    method: str
    path: str
    text: str
    credentials: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    request_example: str
    answer_example: str
    answers: tuple[str, ...]


@router.get(PATH)
def show_docs(request: Request) -> HTMLResponse:
    """The page."""
    return HTMLResponse(render(request.app.openapi()), headers=_HEADERS)


def render(document: Mapping[str, Any]) -> str:
    """An OpenAPI document as an HTML page. Pure."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    return environment.get_template("docs.html.j2").render(
        title=document["info"]["title"],
        text=document["info"]["description"],
        operations=operations(document),
        credentials={
            name: scheme.get("description", "")
            for name, scheme in document["components"]["securitySchemes"].items()
        },
    )


def operations(document: Mapping[str, Any]) -> list[Operation]:
    """The endpoints of an OpenAPI document, in its order."""
    return [
        _operation(document, path, method, found)
        for path, methods in document["paths"].items()
        for method, found in methods.items()
    ]


def _code(text: str) -> Markup:
    """`text`, escaped, with what stands in backticks set as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def _operation(
    document: Mapping[str, Any], path: str, method: str, found: Mapping[str, Any]
) -> Operation:
    answers = found["responses"]
    accepted = next((answer for status, answer in answers.items() if status.startswith("2")), {})
    return Operation(
        method=method.upper(),
        path=path,
        text=found.get("description", ""),
        credentials=tuple(name for each in found.get("security", []) for name in each),
        parameters=tuple(
            Parameter(name=each["name"], place=each["in"], text=each.get("description", ""))
            for each in found.get("parameters", [])
        ),
        request_example=_example(document, found.get("requestBody", {})),
        answer_example=_example(document, accepted),
        answers=tuple(f"{status} {answer['description']}" for status, answer in answers.items()),
    )


def _example(document: Mapping[str, Any], body: Mapping[str, Any]) -> str:
    schema = body.get("content", {}).get("application/json", {}).get("schema", {})
    name = schema.get("$ref", "").rpartition("/")[2]
    examples = document["components"]["schemas"].get(name, {}).get("examples", [])
    return json.dumps(examples[0], indent=2) if examples else ""
