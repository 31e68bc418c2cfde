"""Which error is which problem, decided without a server."""

import json

import pytest
from starlette.exceptions import HTTPException

from fleet import errors
from netboot import problems
from netboot.orchestrator import PrefectRefused, PrefectUnavailable


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (errors.TokenUnknown("x"), 401, "token-unknown"),
        (problems.KeyNeeded("x"), 401, "key-needed"),
        (errors.TokenExpired("x"), 403, "token-expired"),
        (errors.TokenRevoked("x"), 403, "token-revoked"),
        (errors.TokenSpent("x"), 403, "token-spent"),
        (errors.UnknownMachine("x"), 404, "unknown-machine"),
        (errors.UnknownJob("x"), 404, "unknown-job"),
        (errors.NameTaken("x"), 409, "name-taken"),
        (errors.IllegalTransition("x"), 409, "illegal-transition"),
        (errors.HostKeysChanged("x"), 409, "host-keys-changed"),
        (problems.BodyTooLarge("x"), 413, "body-too-large"),
        (errors.InvalidName("x"), 422, "invalid-name"),
        (errors.InvalidRequest("x"), 422, "invalid-request"),
        (PrefectRefused("x"), 502, "prefect-refused"),
        (PrefectUnavailable("x"), 503, "prefect-unavailable"),
        (errors.SetupFailed("x"), 503, "setup-failed"),
        (HTTPException(404), 404, "not-found"),
        (HTTPException(405), 405, "method-not-allowed"),
    ],
)
def test_expected_errors_have_a_status(error: Exception, status: int, slug: str) -> None:
    """Each expected error has its HTTP status and its problem type."""
    answer = problems.answer_to(error)
    assert answer is not None
    assert (status, slug) == (answer.status, answer.slug)


@pytest.mark.parametrize("error", [KeyError("x"), errors.PlaybookFailed("x"), OSError(5, "disk")])
def test_other_errors_are_unexpected(error: Exception) -> None:
    """What the table does not name is unexpected, errors of flows included."""
    assert problems.answer_to(error) is None


def test_only_a_spent_token_says_ready() -> None:
    """machine_state stands in the answer to a spent token and in no other."""
    states = [
        answer.machine_state
        for error in (errors.TokenSpent("x"), errors.TokenExpired("x"), errors.UnknownJob("x"))
        if (answer := problems.answer_to(error))
    ]
    assert ["ready", None, None] == states


def test_a_problem_document_tells_what_and_what_next() -> None:
    """The document holds RFC 9457's members, the request's id and the remedy, secrets masked."""
    answer = problems.answer_to(errors.NameTaken("password=hunter2 at node-3", remedy="Wait."))
    assert answer is not None
    response = problems.respond(answer, {"type": "http", problems.REQUEST_ID: "abc"})
    assert {
        "type": "/problems/name-taken",
        "title": "A machine of this name exists",
        "status": 409,
        "detail": "password=[redacted] at node-3",
        "instance": "urn:uuid:abc",
        "request_id": "abc",
        "remedy": "Wait.",
    } == json.loads(bytes(response.body))
    assert "application/problem+json" == response.headers["content-type"]


def test_retry_after_is_told_to_those_who_ask_too_often() -> None:
    """A 429 says in its header how long to wait."""
    answer = problems.answer_to(problems.TooManyRequests("x", remedy="y", retry_after=7))
    assert answer is not None
    assert {"Retry-After": "7"} == answer.headers
