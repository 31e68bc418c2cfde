"""The API's endpoints over HTTP, on both databases."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from fleet import enrolment, events, jobs, machines
from fleet.registry import Registry
from fleet.settings import Settings
from fleet.states import JobState

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document of an answer that must have this status and type."""
    assert (status, "application/problem+json") == (
        answer.status_code,
        answer.headers["content-type"],
    ), answer.text
    document = answer.json()
    assert f"/problems/{slug}" == document["type"]
    assert status == document["status"]
    assert answer.headers["x-request-id"] == document["request_id"]
    return document


def test_call_home_is_accepted_and_committed(api) -> None:
    """An accepted call home has written machine, event and queued job when it is answered."""
    enrolled = api.add("node-3")
    answer = api.call_home(enrolled["token"], api.report("node-3", mac="52-54-00-12-34-56"))
    assert 202 == answer.status_code, answer.text
    body = answer.json()
    with api.registry.read() as session:
        machine = machines.get(session, "node-3")
        job = jobs.get(session, body["job_id"])
        timeline = [event.kind for event in events.timeline(session, machine.id)]
    assert {
        "job_id": job.id,
        "machine_id": machine.id,
        "status_url": f"/api/v1/jobs/{job.id}",
    } == body
    assert ("called-home", "127.0.0.1", "52:54:00:12:34:56") == (
        machine.state,
        machine.address,
        machine.mac,
    )
    assert JobState.QUEUED == job.state
    assert ["added", "call-home", "called-home"] == timeline


def test_same_boot_gets_the_same_job(api) -> None:
    """The same machine and boot id again get the same job; another boot gets another."""
    token = api.add("node-3")["token"]
    first, again = (api.call_home(token, api.report("node-3")).json() for _ in range(2))
    other = api.call_home(
        token, api.report("node-3", boot_id="11111111-2222-4333-8444-555555555555")
    ).json()
    assert first == again
    assert first["job_id"] != other["job_id"]
    assert first["machine_id"] == other["machine_id"]


def test_claims_are_recorded_and_not_used(api) -> None:
    """A claimed address or hostname that differs is in the event, and nowhere else."""
    token = api.add("node-3")["token"]
    body = api.report("node-3", hostname="impostor", address="203.0.113.9")
    assert 202 == api.call_home(token, body).status_code
    with api.registry.read() as session:
        machine = machines.get(session, "node-3")
        data = events.timeline(session, machine.id)[1].data
    assert "127.0.0.1" == machine.address
    assert data is not None
    assert ("203.0.113.9", "impostor") == (data["claimed_address"], data["claimed_hostname"])


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer nobody"}, {"Authorization": ""}])
def test_wrong_or_missing_token_is_401(api, headers: dict[str, str]) -> None:
    """Without a token of ours nothing is written, and the answer says how to get one."""
    answer = api.http.post("/api/v1/call-home", json=api.report("node-3"), headers=headers)
    document = problem(answer, 401, "token-unknown")
    assert "machine add" in document["remedy"]
    assert "Bearer" == answer.headers["www-authenticate"]


def test_revoked_token_is_403_with_a_remedy(api) -> None:
    """A token that was replaced is refused, and the answer says what to do."""
    old = api.add("node-3")["token"]
    renewed = api.http.post("/api/v1/machines/node-3/token", headers=api.as_operator)
    assert 201 == renewed.status_code
    document = problem(api.call_home(old, api.report("node-3")), 403, "token-revoked")
    assert "muster machine token node-3" in document["remedy"]
    assert 202 == api.call_home(renewed.json()["token"], api.report("node-3")).status_code


def test_expired_token_is_403(api) -> None:
    """A token past its life is refused."""
    api.add("node-3")
    with api.registry.write() as session:
        machine = machines.get(session, "node-3")
        long_ago = datetime(2020, 1, 1, tzinfo=UTC)
        token = enrolment.mint(session, machine, now=long_ago, life=60)
    problem(api.call_home(token, api.report("node-3")), 403, "token-expired")


def test_spent_token_says_that_the_machine_is_ready(api) -> None:
    """Once ready, calls home are 403 with machine_state ready, and the job stays readable."""
    token = api.add("node-3")["token"]
    accepted = api.call_home(token, api.report("node-3")).json()
    with api.registry.write() as session:
        now = datetime.now(UTC)
        jobs.started(session, accepted["job_id"], "run-1", now=now)
        jobs.succeeded(session, accepted["job_id"], now=now)
    refused = problem(api.call_home(token, api.report("node-3")), 403, "token-spent")
    assert "ready" == refused["machine_state"]
    status = api.http.get(
        accepted["status_url"], headers={"Authorization": f"Bearer {token}"}
    ).json()
    assert ("ready", "succeeded") == (status["machine_state"], status["state"])


def test_other_host_keys_are_409_and_an_event(api) -> None:
    """A second set of host keys under one token is refused and seen by the operator."""
    token = api.add("node-3")["token"]
    assert 202 == api.call_home(token, api.report("node-3")).status_code
    other = api.report("impostor", boot_id="11111111-2222-4333-8444-555555555555")
    problem(api.call_home(token, other), 409, "host-keys-changed")
    timeline = api.http.get("/api/v1/machines/node-3/timeline", headers=api.as_operator).json()
    assert "call-home-refused" == timeline[-1]["kind"]
    assert "host-keys-changed" == timeline[-1]["data"]["why"]


def test_a_machine_reads_its_own_job_only(api) -> None:
    """A machine's token opens its own job and no other job, list or log."""
    tokens = {name: api.add(name)["token"] for name in ("node-1", "node-2")}
    urls = {
        name: api.call_home(token, api.report(name)).json()["status_url"]
        for name, token in tokens.items()
    }
    mine = {"Authorization": f"Bearer {tokens['node-1']}"}
    own = api.http.get(urls["node-1"], headers=mine)
    assert (200, "called-home") == (own.status_code, own.json()["machine_state"])
    foreign = problem(api.http.get(urls["node-2"], headers=mine), 404, "unknown-job")
    absent = problem(api.http.get(f"/api/v1/jobs/{UNKNOWN_ID}", headers=mine), 404, "unknown-job")
    assert foreign["detail"].replace(urls["node-2"][-36:], UNKNOWN_ID) == absent["detail"]
    nobody = {"Authorization": "Bearer nobody"}
    for url in (urls["node-2"], f"/api/v1/jobs/{UNKNOWN_ID}"):
        problem(api.http.get(url, headers=nobody), 401, "token-unknown")
    problem(api.http.get(urls["node-1"]), 401, "token-unknown")
    problem(api.http.get(f"{urls['node-1']}/log", headers=mine), 401, "key-needed")
    problem(api.http.get("/api/v1/jobs", headers=mine), 401, "key-needed")


def test_operators_endpoints_need_a_key(api) -> None:
    """Every operator's endpoint is 401 without a key and with a wrong one."""
    for method, path in (
        ("GET", "/api/v1/jobs"),
        ("POST", f"/api/v1/jobs/{UNKNOWN_ID}/retry"),
        ("POST", f"/api/v1/jobs/{UNKNOWN_ID}/cancel"),
        ("GET", "/api/v1/machines"),
        ("POST", "/api/v1/machines"),
        ("GET", "/api/v1/machines/node-3"),
        ("GET", "/api/v1/machines/node-3/timeline"),
        ("POST", "/api/v1/machines/node-3/approve"),
        ("POST", "/api/v1/machines/node-3/retire"),
        ("POST", "/api/v1/machines/node-3/token"),
    ):
        body = {"name": "node-3"} if path.endswith("machines") and method == "POST" else None
        problem(api.http.request(method, path, json=body), 401, "key-needed")
        wrong = {"Authorization": "Bearer wrong"}
        problem(api.http.request(method, path, json=body, headers=wrong), 401, "key-needed")


def test_without_keys_operators_endpoints_are_closed(
    serve_api: Callable, registry: Registry, settings: Settings
) -> None:
    """With no key set nobody gets in, and the answer names the setting."""
    api = serve_api(registry, settings, api_keys=())
    answer = api.http.get("/api/v1/machines", headers=api.as_operator)
    assert "MUSTER_API_KEYS" in problem(answer, 401, "key-needed")["remedy"]


def test_machine_add_answers_as_the_command_does(api) -> None:
    """The answer holds id, token and the line to run, which names this API and the token."""
    body = api.add("node-3")
    assert {"machine_id", "token", "command"} == set(body)
    assert f"MUSTER_TOKEN={body['token']} sh" in body["command"]
    assert f"{api.settings.api_url}/first-boot/install.sh" in body["command"]
    assert 43 == len(body["token"])


@pytest.mark.parametrize("name", ["all", "localhost", "Node", "-a", "a b", "", "1", "a" * 64, "é"])
def test_bad_names_are_422(api, name: str) -> None:
    """A machine cannot be added under a name that is none or is reserved."""
    answer = api.http.post("/api/v1/machines", json={"name": name}, headers=api.as_operator)
    problem(answer, 422, "invalid-name")


def test_a_taken_name_is_409_until_it_is_retired(api) -> None:
    """A living machine keeps its name; retiring it gives the name back."""
    first = api.add("node-3")
    taken = api.http.post("/api/v1/machines", json={"name": "node-3"}, headers=api.as_operator)
    problem(taken, 409, "name-taken")
    retired = api.http.post("/api/v1/machines/node-3/retire", headers=api.as_operator)
    assert (200, "retired") == (retired.status_code, retired.json()["state"])
    assert first["machine_id"] != api.add("node-3")["machine_id"]


def test_machines_are_found_by_name_and_id(api) -> None:
    """A path may hold a machine's id or its name; an unknown one is 404."""
    machine_id = api.add("node-3")["machine_id"]
    by_name = api.http.get("/api/v1/machines/node-3", headers=api.as_operator).json()
    by_id = api.http.get(f"/api/v1/machines/{machine_id}", headers=api.as_operator).json()
    assert by_name == by_id
    assert [by_id] == api.http.get("/api/v1/machines", headers=api.as_operator).json()
    unknown = api.http.get("/api/v1/machines/nobody", headers=api.as_operator)
    problem(unknown, 404, "unknown-machine")


def test_retired_machines_are_listed_only_when_asked_for(api) -> None:
    """The list leaves retired machines out unless `retired` or their state is asked for."""
    api.add("node-3")
    api.http.post("/api/v1/machines/node-3/retire", headers=api.as_operator)
    lengths = [
        len(api.http.get(f"/api/v1/machines{query}", headers=api.as_operator).json())
        for query in ("", "?retired=true", "?state=retired", "?state=ready&retired=true")
    ]
    assert [0, 1, 1, 0] == lengths


def test_approve_where_the_state_forbids_names_both_states(api) -> None:
    """An illegal approval is 409 and says what the machine is and cannot become."""
    machine_id = api.add("node-3")["machine_id"]
    api.http.post(f"/api/v1/machines/{machine_id}/retire", headers=api.as_operator)
    for verb, word in (("approve", "approved"), ("retire", "retired")):
        answer = api.http.post(f"/api/v1/machines/{machine_id}/{verb}", headers=api.as_operator)
        detail = problem(answer, 409, "illegal-transition")["detail"]
        assert f"is retired and cannot become {word}" in detail
    again = api.http.post(f"/api/v1/machines/{machine_id}/token", headers=api.as_operator)
    problem(again, 409, "illegal-transition")


def test_approve_where_the_state_allows(api) -> None:
    """A machine that called home may be approved for a new installation."""
    api.call_home(api.add("node-3")["token"], api.report("node-3"))
    answer = api.http.post("/api/v1/machines/node-3/approve", headers=api.as_operator)
    assert (200, "approved") == (answer.status_code, answer.json()["state"])


def test_jobs_are_listed_and_filtered(api) -> None:
    """Jobs are listed newest first and filtered by state and by machine."""
    for name in ("node-1", "node-2"):
        api.call_home(api.add(name)["token"], api.report(name))

    def names(query: str) -> list[str]:
        found = api.http.get(f"/api/v1/jobs{query}", headers=api.as_operator)
        assert 200 == found.status_code, found.text
        return [job["machine_name"] for job in found.json()]

    assert ["node-2", "node-1"] == names("")
    assert ["node-1"] == names("?machine=node-1")
    assert ["node-2", "node-1"] == names("?state=queued")
    assert [] == names("?state=failed")
    assert ["node-2"] == names("?limit=1")


@pytest.mark.parametrize(
    "path",
    ["/api/v1/jobs?state=asleep", "/api/v1/jobs?limit=0", "/api/v1/jobs?machine=%00",
     "/api/v1/machines?state=%27", "/api/v1/machines/A%20B", "/api/v1/jobs/%7B%7B7*7%7D%7D"],
)  # fmt: skip
def test_references_that_are_none_are_422(api, path: str) -> None:
    """What cannot be an id, a name or a state is refused before any look at the database."""
    problem(api.http.get(path, headers=api.as_operator), 422, "invalid-request")


def test_a_queued_job_is_cancelled_and_retried_without_prefect(api) -> None:
    """A job in the outbox is cancelled at once, and retry puts it back; running ones are 409."""
    token = api.add("node-3")["token"]
    url = api.call_home(token, api.report("node-3")).json()["status_url"]
    problem(api.http.post(f"{url}/retry", headers=api.as_operator), 409, "illegal-transition")
    states = [
        api.http.post(f"{url}/{verb}", headers=api.as_operator).json()["state"]
        for verb in ("cancel", "retry")
    ]
    assert ["cancelled", "queued"] == states
    problem(api.http.get(f"{url}/log", headers=api.as_operator), 409, "no-run-yet")


def test_while_prefect_is_down_its_answers_are_503(api) -> None:
    """What only Prefect can answer is 503 while it is down; calls home are taken all the same."""
    token = api.add("node-3")["token"]
    accepted = api.call_home(token, api.report("node-3")).json()
    with api.registry.write() as session:
        jobs.submitted(session, accepted["job_id"], "run-1", now=datetime.now(UTC))
    url = accepted["status_url"]
    problem(api.http.get(f"{url}/log", headers=api.as_operator), 503, "prefect-unavailable")
    problem(api.http.post(f"{url}/cancel", headers=api.as_operator), 503, "prefect-unavailable")
    assert 202 == api.call_home(token, api.report("node-3")).status_code


def test_unknown_jobs_are_404(api) -> None:
    """A job that does not exist is 404 for operators, whatever is asked of it."""
    for method, tail in (("GET", ""), ("GET", "/log"), ("POST", "/retry"), ("POST", "/cancel")):
        answer = api.http.request(
            method, f"/api/v1/jobs/{UNKNOWN_ID}{tail}", headers=api.as_operator
        )
        problem(answer, 404, "unknown-job")


def test_health_tells_life_from_readiness(api) -> None:
    """/healthz is ok while Prefect is down; /readyz is 503 and names it."""
    assert {"status": "ok"} == api.http.get("/healthz").json()
    document = problem(api.http.get("/readyz"), 503, "not-ready")
    assert api.settings.prefect_url in document["detail"]


def test_metrics_show_requests_jobs_machines_and_outbox(api) -> None:
    """The figures count by route template and status, and show what the registry holds."""
    api.call_home(api.add("node-3")["token"], api.report("node-3"))
    api.http.get("/nowhere/at/all")
    api.http.get("/api/v1/machines/node-3", headers=api.as_operator)
    text = api.http.get("/metrics").text
    for line in (
        'muster_http_requests_total{method="POST",route="/api/v1/call-home",status="202"} 1.0',
        'muster_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'route="/api/v1/machines/{machine}",status="200"} 1.0',
        "muster_call_home_seconds_count 1.0",
        'muster_jobs{state="queued"} 1.0',
        'muster_machines{state="called-home"} 1.0',
        "muster_outbox_depth 1.0",
        "muster_registry_up 1.0",
    ):
        assert line in text
    assert "node-3" not in text


def test_unknown_paths_and_methods_are_problems(api) -> None:
    """A path or method that does not exist is a problem document too."""
    problem(api.http.get("/nowhere"), 404, "not-found")
    wrong = api.http.put("/healthz")
    problem(wrong, 405, "method-not-allowed")
    assert "GET" == wrong.headers["allow"]


def test_install_script_is_served_without_a_key_and_without_a_secret(api) -> None:
    """Everyone may read the installer; it names this API, and holds the operator's public key."""
    token = api.add("node-3")["token"]
    answer = api.http.get("/first-boot/install.sh")
    assert (200, "text/x-shellscript; charset=utf-8") == (
        answer.status_code,
        answer.headers["content-type"],
    )
    assert f'{{"api_url": "{api.settings.api_url}"}}' in answer.text
    assert "operator@control" in answer.text
    assert token not in answer.text


def test_without_a_public_url_machines_cannot_be_added(
    serve_api: Callable, registry: Registry, settings: Settings
) -> None:
    """An API that listens everywhere says that MUSTER_PUBLIC_URL is needed, and adds nothing."""
    api = serve_api(registry, settings, api_host="0.0.0.0")
    answer = api.http.post("/api/v1/machines", json={"name": "node-3"}, headers=api.as_operator)
    assert "MUSTER_PUBLIC_URL" in problem(answer, 503, "setup-failed")["remedy"]
    assert "MUSTER_PUBLIC_URL" in api.http.get("/first-boot/install.sh").json()["remedy"]
    assert [] == api.http.get("/api/v1/machines", headers=api.as_operator).json()


def test_openapi_documents_every_error_and_both_credentials(api) -> None:
    """The OpenAPI document has examples, problem answers and security for each endpoint."""
    document = api.http.get("/openapi.json").json()
    assert {"operatorKey", "machineToken"} == set(document["components"]["securitySchemes"])
    call_home = document["paths"]["/api/v1/call-home"]["post"]
    assert [{"machineToken": []}] == call_home["security"]
    assert {"202", "400", "401", "403", "408", "409", "413", "422", "429", "500"} == set(
        call_home["responses"]
    )
    assert "HTTPValidationError" not in str(document["paths"])
    assert document["components"]["schemas"]["CallHome"]["examples"]
