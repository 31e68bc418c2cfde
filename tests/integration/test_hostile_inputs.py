"""Hostile requests: each ends in a clear 4xx or as inert data, and the API works on."""

import json
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import text

from fleet import events, jobs, machines
from fleet.registry import Registry
from fleet.settings import Settings
from fleet.states import MachineState

JINJA = "{{ lookup('pipe', 'touch /tmp/muster-owned') }}"
JINJA_BLOCK = "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}"
SHELL = "$(touch /tmp/muster-owned)"
BACKTICKS = "`touch /tmp/muster-owned`"
YAML = "!!python/object/apply:os.system ['touch /tmp/muster-owned']"
YAML_BREAK = "x\n  ansible_host: evil\n  ansible_connection: local"
PATH = "../../../../etc/cron.d/owned"
CRLF = "x\r\nX-Injected: yes\r\n\r\n<script>alert(1)</script>"
SQL = "node-3'; DROP TABLE machines; --"
NUL = "node-3\x00.example"
BIDI = "node-3\u202egpj.exe"
LINE_SEPARATOR = "node-3\u2028evil"
LONE_SURROGATE = "\ud800"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s"
PRIVATE_KEY = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----"

TEXTS = (
    JINJA, JINJA_BLOCK, SHELL, BACKTICKS, YAML, YAML_BREAK, PATH, CRLF, SQL, NUL, BIDI,
    LINE_SEPARATOR, LONE_SURROGATE,
)  # fmt: skip
NAMES = ("all", "ungrouped", "localhost", "machines", "ready", "Node-3", "-node", "node-", "a.b",
         "7", "n" * 64, "", " ", "nödé", *TEXTS)  # fmt: skip


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@dataclass(frozen=True)
class Hostile:
    """A body that must be refused with `status`; `raw` is sent as it is instead of a body."""

    what: str
    status: int
    changes: dict[str, Any] = field(default_factory=dict)
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


def _refused_fields() -> list[Hostile]:
    cases = [Hostile(f"hostname {name!r}"[:60], 422, {"hostname": name}) for name in NAMES]
    for name in ("boot_id", "address", "mac"):
        cases += [Hostile(f"{name} {value!r}"[:60], 422, {name: value}) for value in TEXTS]
    cases += [Hostile(f"key {value!r}"[:60], 422, {"ssh_host_keys": [value]}) for value in TEXTS]
    return cases


REFUSED = [
    *_refused_fields(),
    Hostile("address with a zone", 422, {"address": "fe80::1%$(reboot)"}),
    Hostile("address as a number", 422, {"address": 2130706433}),
    Hostile("address with a port", 422, {"address": "10.0.0.1:22"}),
    Hostile("address as ssh options", 422, {"address": "-oProxyCommand=touch /tmp/muster-owned"}),
    Hostile("mac of the wrong length", 422, {"mac": "52:54:00"}),
    Hostile("hostname as a list", 422, {"hostname": ["all"]}),
    Hostile("hostname as an object", 422, {"hostname": {"$gt": ""}}),
    Hostile("hostname null", 422, {"hostname": None}),
    Hostile("boot id of zero length", 422, {"boot_id": ""}),
    Hostile("boot id with a tail", 422, {"boot_id": "7f0c2c0e-5a5a-4c1e-9a57-8f3d4c1b2a90\n"}),
    Hostile("no keys", 422, {"ssh_host_keys": []}),
    Hostile("too many keys", 422, {"ssh_host_keys": [KEY] * 17}),
    Hostile("keys as a text", 422, {"ssh_host_keys": KEY}),
    Hostile("a key of an unknown type", 422, {"ssh_host_keys": ["ssh-dss AAAA"]}),
    Hostile("a key of another type than it says", 422, {"ssh_host_keys": ["ssh-rsa " + KEY[12:]]}),
    Hostile("a key with two lines", 422, {"ssh_host_keys": [f"{KEY}\n* {KEY}"]}),
    Hostile("a key with a marker", 422, {"ssh_host_keys": [f"@cert-authority * {KEY}"]}),
    Hostile("a key without its blob", 422, {"ssh_host_keys": ["ssh-ed25519"]}),
    Hostile("a key with damaged base64", 422, {"ssh_host_keys": ["ssh-ed25519 A*B="]}),
    Hostile("a private key", 422, {"ssh_host_keys": [PRIVATE_KEY]}),
    Hostile("a key that is huge", 422, {"ssh_host_keys": ["ssh-rsa " + "A" * 9000]}),
    Hostile("an unknown field", 422, {"ansible_host": JINJA}),
    Hostile("a prototype field", 422, {"__proto__": {"admin": True}}),
    Hostile("a field named as an injection", 422, {JINJA: 1}),
    Hostile("hardware as a list", 422, {"hardware": [1]}),
    Hostile("hardware too deep", 422, {"hardware": json.loads('{"a":' * 30 + "1" + "}" * 30)}),
    Hostile("not JSON", 422, raw=b"{"),
    Hostile("no body", 422, raw=b""),
    Hostile("YAML", 422, raw=b"hostname: all\n"),
    Hostile("XML with an entity", 422, raw=b"<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>"),
    Hostile("a JSON list", 422, raw=b"[]"),
    Hostile("a JSON text", 422, raw=b'"all"'),
    Hostile("a JSON null", 422, raw=b"null"),
    Hostile("a name given twice", 422, raw=b'{"hostname":"a","hostname":"all"}'),
    Hostile("no UTF-8", 400, raw=b'{"hostname": "\xff\xfe"}'),
    Hostile("UTF-16 of nothing", 422, raw=b"\xff\xfe"),
    Hostile("a NUL byte", 422, raw=b"\x00"),
    Hostile("JSON nested without end", 400, raw=b"[" * 60_000),
    Hostile("objects nested without end", 400, raw=b'{"a":' * 12_000),
    Hostile("a number without end", 400, raw=b'{"hardware":{"n":' + b"9" * 60_000 + b"}}"),
    Hostile("a form", 422, raw=b"hostname=all",
            headers={"Content-Type": "application/x-www-form-urlencoded"}),
    Hostile("JSON as a text", 422, raw=b"{}", headers={"Content-Type": "text/plain"}),
    Hostile("a body over the limit", 413, {"hardware": {"x": "A" * 70_000}}),
]  # fmt: skip


def test_the_table_is_long_enough() -> None:
    """At least sixty hostile bodies are tried."""
    assert len(REFUSED) >= 60


@pytest.fixture
def hostile_api(serve_api: Callable[..., Any], registry: Registry, settings: Settings) -> Any:
    """An API with one machine added, on each database."""
    api = serve_api(registry, settings)
    return api, api.add("node-3")["token"]


def _send(api: Any, token: str, case: Hostile) -> httpx.Response:
    body = case.raw
    if body is None:
        body = json.dumps(api.report("node-3") | case.changes).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    return api.http.post("/api/v1/call-home", content=body, headers=headers | case.headers)


def _written(registry: Registry) -> list[tuple[Any, ...]]:
    """Everything that the registry holds but its tokens."""
    with registry.read() as session:
        return [
            tuple(row)
            for table in ("machines", "jobs", "events")
            for row in session.execute(text(f"SELECT * FROM {table} ORDER BY id"))
        ]


def test_every_hostile_body_is_refused_and_leaves_nothing(hostile_api, caplog) -> None:
    """Each body gets its 4xx as a problem document, and the registry stays as it was."""
    api, token = hostile_api
    files = sorted(api.settings.home.rglob("*"))
    before = _written(api.registry)
    wrong = []
    for case in REFUSED:
        answer = _send(api, token, case)
        kind = answer.headers.get("content-type")
        if (answer.status_code, kind) != (case.status, "application/problem+json"):
            wrong.append((case.what, answer.status_code, answer.text[:200]))
        assert token not in answer.text
        assert "x-injected" not in answer.headers
        assert "Traceback" not in answer.text
    assert [] == wrong
    assert before == _written(api.registry)
    assert files == sorted(api.settings.home.rglob("*"))
    assert not Path("/tmp/muster-owned").exists()
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert 202 == api.call_home(token, api.report("node-3")).status_code


def test_hostile_hardware_is_inert_data(hostile_api) -> None:
    """Hardware facts are kept as data, free of control characters, and come back as JSON."""
    api, _ = hostile_api
    for number, value in enumerate(TEXTS):
        name = f"hardware-{number}"
        hardware = {"cpu_model": value, value: [value, {value: 1e999}], "n": 10**300}
        body = json.dumps(api.report(name) | {"hardware": hardware}).encode()
        headers = bearer(api.add(name)["token"]) | {"Content-Type": "application/json"}
        answer = api.http.post("/api/v1/call-home", content=body, headers=headers)
        assert 202 == answer.status_code, answer.text
        seen = api.http.get(f"/api/v1/machines/{name}", headers=api.as_operator).json()["hardware"]
        kept = seen["cpu_model"]
        assert kept == "".join(c for c in kept if c.isprintable() or c == "\u202e")
        assert 10**300 == seen["n"]
    assert not Path("/tmp/muster-owned").exists()


def test_hostile_names_cannot_be_added(hostile_api) -> None:
    """No hostile name becomes a machine, and each is refused with 422."""
    api, _ = hostile_api
    for name in NAMES:
        content = json.dumps({"name": name}).encode()
        headers = api.as_operator | {"Content-Type": "application/json"}
        answer = api.http.post("/api/v1/machines", content=content, headers=headers)
        assert (name, 422) == (name, answer.status_code)
    listed = api.http.get("/api/v1/machines", headers=api.as_operator).json()
    assert ["node-3"] == [machine["name"] for machine in listed]


HOSTILE_PATHS = (
    "/api/v1/machines/..%2f..%2fetc%2fpasswd", "/api/v1/machines/%00", "/api/v1/machines/%ff",
    "/api/v1/machines/node-3%0d%0aX-Injected:%20yes", "/api/v1/jobs/%7B%7B7*7%7D%7D",
    "/api/v1/jobs/1%27%20OR%20%271%27=%271", "/api/v1/jobs?machine=%27%20OR%201=1",
    "/api/v1/jobs?state[]=queued&state=%24where", "/first-boot/../../../etc/passwd",
    "/first-boot/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/api/v1/machines/" + "a" * 5000,
)  # fmt: skip


def test_hostile_paths_end_as_4xx(hostile_api) -> None:
    """No path reaches a file, a header or the database as text."""
    api, _ = hostile_api
    for path in HOSTILE_PATHS:
        request = httpx.Request("GET", f"{api.url}/", headers=api.as_operator)
        request.url = request.url.copy_with(raw_path=path.encode())
        answer = api.http.send(request)
        assert (path, 4) == (path, answer.status_code // 100)
        assert "application/problem+json" == answer.headers["content-type"]
        assert "x-injected" not in answer.headers
        assert "root:" not in answer.text


HOSTILE_TOKENS = ("", " ", "x" * 20_000, "' OR '1'='1", JINJA, "é", "a\tb", "Bearer", "null")


def test_hostile_tokens_are_401(hostile_api) -> None:
    """Whatever stands in place of a token is not found, and does not come back."""
    api, _ = hostile_api
    body = json.dumps(api.report("node-3")).encode()
    for token in HOSTILE_TOKENS:
        answer = _talk(
            api.settings.api_port, _head(token, f"Content-Length: {len(body)}") + body
        ).decode()
        assert (token, "401") == (token, answer.split(" ")[1])
        assert "/problems/token-unknown" in answer
        assert len(token) < 9 or token not in answer


def _talk(port: int, request: bytes) -> bytes:
    """Send bytes as they are and read the answer until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
        return answer


def _head(token: str, *lines: str) -> bytes:
    return "\r\n".join(
        ["POST /api/v1/call-home HTTP/1.1", "Host: muster", "Connection: close",
         "Content-Type: application/json", f"Authorization: Bearer {token}", *lines, "", ""]
    ).encode()  # fmt: skip


def test_a_chunked_body_is_limited_too(hostile_api) -> None:
    """A body without a length is cut off at the limit with 413."""
    api, token = hostile_api
    chunk = b"8000\r\n" + b"A" * 0x8000 + b"\r\n"
    answer = _talk(
        api.settings.api_port, _head(token, "Transfer-Encoding: chunked") + chunk * 3 + b"0\r\n\r\n"
    )
    assert b" 413 " in answer.splitlines()[0]
    assert b"MUSTER_BODY_LIMIT" in answer


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (("Content-Length: 5",), b'{"hostname":"node-3"}'),
        (("Content-Length: -1",), b"{}"),
        (("Content-Length: many",), b"{}"),
        (("Content-Length: 2", "Content-Length: 3"), b"{}x"),
        (("Content-Length: 2", "Transfer-Encoding: chunked"), b"0\r\n\r\n"),
        (("Content-Length: 99999999999999999999999999",), b"{}"),
        (("X-A: b\x00c", "Content-Length: 2"), b"{}"),
    ],
)
def test_lying_lengths_end_as_4xx(hostile_api, lines: tuple[str, ...], body: bytes) -> None:
    """A length that lies or contradicts itself smuggles nothing past the limits."""
    api, token = hostile_api
    answer = _talk(api.settings.api_port, _head(token, *lines) + body)
    assert answer.split(b" ")[1].startswith(b"4"), answer
    assert 202 == api.call_home(token, api.report("node-3")).status_code


def test_a_length_that_is_never_met_binds_nothing(hostile_api) -> None:
    """A caller that announces more than it sends and leaves is forgotten."""
    api, token = hostile_api
    before = _written(api.registry)
    with socket.create_connection(("127.0.0.1", api.settings.api_port)) as connection:
        connection.sendall(_head(token, "Content-Length: 5000") + b'{"hostname":')
    assert 202 == api.call_home(token, api.report("node-3")).status_code
    assert len(before) < len(_written(api.registry))


def test_forwarded_addresses_of_strangers_are_ignored(hostile_api) -> None:
    """Without trusted proxies a forwarding header changes nothing."""
    api, token = hostile_api
    headers = {
        "Authorization": f"Bearer {token}",
        "X-Forwarded-For": "203.0.113.9",
        "Forwarded": "for=203.0.113.9",
        "X-Real-IP": JINJA,
    }
    assert (
        202
        == api.http.post(
            "/api/v1/call-home", json=api.report("node-3"), headers=headers
        ).status_code
    )
    with api.registry.read() as session:
        assert "127.0.0.1" == machines.get(session, "node-3").address


def test_a_trusted_proxys_caller_is_believed(
    serve_api: Callable[..., Any], registry: Registry, settings: Settings
) -> None:
    """Behind a trusted proxy the address is the right-most hop that it vouches for."""
    api = serve_api(registry, settings, trusted_proxies=("127.0.0.1",))
    token = api.add("node-3")["token"]
    headers = {"Authorization": f"Bearer {token}", "X-Forwarded-For": f"{JINJA}, 10.9.8.7"}
    api.http.post("/api/v1/call-home", json=api.report("node-3"), headers=headers)
    with api.registry.read() as session:
        assert "10.9.8.7" == machines.get(session, "node-3").address


def test_too_many_requests_are_429_per_source(
    serve_api: Callable[..., Any], registry: Registry, settings: Settings
) -> None:
    """A source over the limit waits, told how long; others and the monitoring do not."""
    api = serve_api(registry, settings, rate_limit="5/minute")
    statuses = [api.http.get("/api/v1/machines").status_code for _ in range(7)]
    assert [401] * 5 + [429] * 2 == statuses
    refused = api.http.get("/api/v1/machines")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert "MUSTER_RATE_LIMIT" in refused.json()["remedy"]
    assert 200 == api.http.get("/healthz").status_code
    assert 200 == api.http.get("/metrics").status_code
    other = httpx.HTTPTransport(local_address="127.0.0.2")
    with httpx.Client(transport=other, base_url=api.url) as neighbour:
        assert 401 == neighbour.get("/api/v1/machines").status_code


def test_validation_errors_do_not_repeat_what_was_sent(hostile_api) -> None:
    """A secret in the wrong place does not come back in the answer."""
    api, token = hostile_api
    body = api.report("node-3") | {"boot_id": token, "mac": token, token: token}
    answer = api.call_home(token, body)
    assert 422 == answer.status_code
    assert token not in answer.text


def test_a_broken_database_is_a_500_that_tells_nothing(hostile_api, caplog) -> None:
    """An unexpected error shows its request's id alone; the log has the id and the cause."""
    api, token = hostile_api
    with api.registry.write() as session:
        for table in ("events", "jobs"):
            session.execute(text(f"DROP TABLE {table}"))
    for answer in (
        api.call_home(token, api.report("node-3")),
        api.http.get("/api/v1/jobs", headers=api.as_operator),
    ):
        document = answer.json()
        assert (500, "/problems/unexpected") == (answer.status_code, document["type"])
        assert "application/problem+json" == answer.headers["content-type"]
        assert answer.headers["x-request-id"] == document["request_id"]
        for internal in ("jobs", "SELECT", "sqlalchemy", "Traceback", "table", token):
            assert internal not in answer.text
        logged = [
            r.getMessage() for r in caplog.records if document["request_id"] in r.getMessage()
        ]
        assert 1 == len(logged)
        assert "jobs" in logged[0]
        assert token not in caplog.text
    assert "muster_registry_up 0.0" in api.http.get("/metrics").text
    assert 200 == api.http.get("/healthz").status_code


def test_a_retired_machine_cannot_call_home(hostile_api) -> None:
    """Retiring revokes the token: nothing of a later call is kept but the refusal."""
    api, token = hostile_api
    with api.registry.write() as session:
        machine = machines.retire(session, "node-3", now=datetime.now(UTC))
    assert 403 == api.call_home(token, api.report("node-3")).status_code
    with api.registry.read() as session:
        assert MachineState.RETIRED == machines.get(session, machine.id).state
        assert [] == jobs.listing(session)
        assert "call-home-refused" == events.timeline(session, machine.id)[-1].kind
