"""Errors as RFC 9457 problem documents: what happened, and what to do next.

One table says which error is which HTTP status. Whatever is not in it is unexpected: it is
logged with the request's id, and the answer tells nothing but that id.
"""

import json
import logging
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from fleet import errors
from fleet.redaction import Redactor
from netboot.orchestrator import PrefectRefused, PrefectUnavailable

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
REQUEST_ID = "muster.request_id"
_MAX_FIELDS = 20
_MAX_TEXT = 400
_redact = Redactor()


class KeyNeeded(errors.MusterError):
    slug = "key-needed"
    title = "An operator's key is needed"


class BodyTooLarge(errors.MusterError):
    slug = "body-too-large"
    title = "The body is too large"


class BodyTooSlow(errors.MusterError):
    slug = "body-too-slow"
    title = "The body did not arrive in time"


class TooManyRequests(errors.MusterError):
    slug = "too-many-requests"
    title = "Too many requests from this address"

    def __init__(self, detail: str, *, remedy: str, retry_after: int) -> None:
        super().__init__(detail, remedy=remedy)
        self.retry_after = retry_after


class NotReady(errors.MusterError):
    slug = "not-ready"
    title = "Muster is not ready"


class NoRunYet(errors.MusterError):
    slug = "no-run-yet"
    title = "This job has no run yet"


STATUS: Mapping[type[errors.MusterError], int] = {
    errors.TokenUnknown: 401,
    KeyNeeded: 401,
    errors.TokenRefused: 403,
    errors.UnknownMachine: 404,
    errors.UnknownJob: 404,
    BodyTooSlow: 408,
    errors.NameTaken: 409,
    errors.IllegalTransition: 409,
    errors.HostKeysChanged: 409,
    NoRunYet: 409,
    BodyTooLarge: 413,
    errors.InvalidRequest: 422,
    TooManyRequests: 429,
    PrefectRefused: 502,
    NotReady: 503,
    PrefectUnavailable: 503,
    errors.SetupFailed: 503,
}


class FieldProblem(BaseModel):
    """One thing that does not fit, and where: `body.hostname`, `query.state`."""

    where: str
    message: str


class Problem(BaseModel):
    """A problem document (RFC 9457) with Muster's extensions."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "/problems/token-expired",
                    "title": "This token has expired",
                    "status": 403,
                    "detail": "The token of node-3 expired at 2026-11-24 10:00:00Z.",
                    "instance": "urn:uuid:0b0f6a0e-6f0e-4a39-9a1b-6a4b8d1f2c3d",
                    "request_id": "0b0f6a0e-6f0e-4a39-9a1b-6a4b8d1f2c3d",
                    "remedy": "Make a new token on the control node: muster machine token node-3",
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    remedy: str | None = None
    machine_state: str | None = None
    errors: list[FieldProblem] | None = None


@dataclass(frozen=True)
class Answer:
    """A problem before it is written out for one request."""

    status: int
    slug: str
    title: str
    detail: str
    remedy: str = ""
    machine_state: str | None = None
    fields: Sequence[FieldProblem] | None = None
    headers: Mapping[str, str] | None = None


def answer_to(error: Exception) -> Answer | None:
    """The problem that tells of `error`, or None when it was not expected. Pure."""
    if isinstance(error, errors.MusterError):
        return _answer_to_ours(error)
    if isinstance(error, RequestValidationError):
        return _answer_to_validation(error)
    if isinstance(error, HTTPException):
        return _answer_to_http(error)
    return None


UNEXPECTED = Answer(
    status=500,
    slug="unexpected",
    title="Muster failed unexpectedly",
    detail="The request could not be handled, and nothing of it was kept.",
    remedy="Try again; if it stays, look for the request's id in the API's log.",
)


def respond(answer: Answer, scope: Scope) -> Response:
    """The HTTP response that carries `answer` to the request of `scope`."""
    request_id = scope.get(REQUEST_ID, "")
    document: dict[str, Any] = {
        "type": f"/problems/{answer.slug}",
        "title": answer.title,
        "status": answer.status,
        "detail": _redact(answer.detail),
        "instance": f"urn:uuid:{request_id}",
        "request_id": request_id,
    }
    if answer.remedy:
        document["remedy"] = answer.remedy
    if answer.machine_state is not None:
        document["machine_state"] = answer.machine_state
    if answer.fields:
        document["errors"] = [field.model_dump() for field in answer.fields]
    return Response(
        json.dumps(document), answer.status, dict(answer.headers or {}), media_type=MEDIA_TYPE
    )


def log_unexpected(error: BaseException, scope: Scope) -> None:
    """Log an error that nobody foresaw, with the request's id and without secrets."""
    text = "".join(traceback.format_exception(error))
    logger.error(
        "request %s (%s %r) failed unexpectedly:\n%s",
        scope.get(REQUEST_ID), scope.get("method"), scope.get("path"), _redact(text),
    )  # fmt: skip


async def handle(request: Request, error: Exception) -> Response:
    """FastAPI's exception handler for every error that a problem document tells of."""
    answer = answer_to(error)
    if answer is None:
        log_unexpected(error, request.scope)
        answer = UNEXPECTED
    if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
        answer = replace(answer, headers=_allowed(request) or answer.headers)
    return respond(answer, request.scope)


def install(app: FastAPI) -> None:
    """Let `app` answer its errors with problem documents."""
    for kind in (errors.MusterError, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, handle)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for the problems that an endpoint may answer with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": schema}},
        }
        for status in sorted(statuses)
    }


def _allowed(request: Request) -> dict[str, str]:
    """The Allow header with all methods of a path, where the router names its first route's."""
    path = getattr(request.scope.get("route"), "path", None)
    methods = request.app.openapi()["paths"].get(path, {})
    return {"Allow": ", ".join(sorted(method.upper() for method in methods))} if methods else {}


def _answer_to_ours(error: errors.MusterError) -> Answer | None:
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if status is None:
        return None
    headers: dict[str, str] = {}
    if status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, BodyTooLarge | BodyTooSlow):
        headers["Connection"] = "close"  # the rest of the body is still on its way
    if isinstance(error, TooManyRequests):
        headers["Retry-After"] = str(error.retry_after)
    return Answer(
        status=status,
        slug=error.slug,
        title=error.title,
        detail=error.detail,
        remedy=error.remedy,
        machine_state="ready" if isinstance(error, errors.TokenSpent) else None,
        headers=headers,
    )


def _answer_to_validation(error: RequestValidationError) -> Answer:
    # What was sent stays out of the answer: it may hold a secret in the wrong place.
    fields = [_field_problem(cast(Mapping[str, Any], each)) for each in error.errors()]
    detail = "; ".join(f"{field.where}: {field.message}" for field in fields[:3])
    return Answer(
        status=422,
        slug="invalid-request",
        title=errors.InvalidRequest.title,
        detail=f"{detail}."[:_MAX_TEXT],
        remedy="Mend the request; /docs shows what each endpoint takes.",
        fields=fields[:_MAX_FIELDS],
    )


def _field_problem(found: Mapping[str, Any]) -> FieldProblem:
    parts = [str(part) for part in found["loc"]]
    if found["type"] == "extra_forbidden":
        parts[-1] = "(an unknown field)"
    where = ".".join(parts).encode("ascii", "backslashreplace").decode()
    message = str(found["msg"]).encode("utf-8", "replace").decode()
    return FieldProblem(
        where="".join(c for c in where if c.isprintable())[:80], message=message[:_MAX_TEXT]
    )


def _answer_to_http(error: HTTPException) -> Answer:
    status = HTTPStatus(error.status_code)
    return Answer(
        status=status,
        slug=status.phrase.lower().replace(" ", "-"),
        title=status.phrase,
        detail=_HTTP_DETAILS.get(status, str(error.detail)),
        remedy="/docs shows every endpoint and what it takes.",
        headers=error.headers,
    )


_HTTP_DETAILS = {
    HTTPStatus.NOT_FOUND: "Nothing lives at this path.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This path does not take this method.",
    HTTPStatus.BAD_REQUEST: "The body cannot be read as JSON.",
}
