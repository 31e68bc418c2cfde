"""Calls home that arrive at once, over HTTP, on both databases."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session

from fleet import events, jobs, machines
from fleet.errors import NameTaken
from fleet.registry import Registry
from netboot.services import utc_now
from netboot.writer import GroupWriter


def _at_once(url: str, calls: list[tuple[str, dict[str, Any]]]) -> list[httpx.Response]:
    """Send all calls home (token, body) at the same moment and return the answers in order."""
    gate = threading.Barrier(len(calls))

    def send(call: tuple[str, dict[str, Any]]) -> httpx.Response:
        token, body = call
        with httpx.Client(base_url=url, timeout=30, trust_env=False) as http:
            http.get("/healthz")  # the connection stands before the gate opens
            gate.wait(30)
            headers = {"Authorization": f"Bearer {token}"}
            return http.post("/api/v1/call-home", json=body, headers=headers)

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(send, calls))


def test_the_same_call_twenty_times_at_once_is_one_job(api) -> None:
    """Twenty equal calls are all accepted, share one job, and are one event."""
    token = api.add("node-3")["token"]
    answers = _at_once(api.url, [(token, api.report("node-3"))] * 20)
    assert {202} == {answer.status_code for answer in answers}
    assert 1 == len({answer.json()["job_id"] for answer in answers})
    with api.registry.read() as session:
        assert 1 == len(jobs.listing(session))
        timeline = events.timeline(session, machines.get(session, "node-3").id)
    assert ["added", "call-home", "called-home"] == [event.kind for event in timeline]


def test_of_two_host_keys_at_once_exactly_one_is_bound(api) -> None:
    """Two first calls with other keys under one token: one is accepted, the other is 409."""
    for number in range(5):
        name = f"node-{number}"
        token = api.add(name)["token"]
        bodies = [api.report(f"{name}-key-{key}", hostname=name) for key in range(2)]
        answers = _at_once(api.url, [(token, body) for body in bodies])
        assert [202, 409] == sorted(answer.status_code for answer in answers)
        accepted = next(i for i, answer in enumerate(answers) if answer.status_code == 202)
        with api.registry.read() as session:
            bound = machines.get(session, name).ssh_host_keys
        assert tuple(bodies[accepted]["ssh_host_keys"]) == bound


def test_strangers_among_many_do_not_disturb_the_others(api) -> None:
    """Of calls that share transactions, the bad ones are refused and all good ones are kept."""
    names = [f"node-{number}" for number in range(20)]
    calls = [(api.add(name)["token"], api.report(name)) for name in names]
    calls += [("nobody", api.report("nobody"))] * 10
    answers = _at_once(api.url, calls)
    assert [202] * 20 + [401] * 10 == [answer.status_code for answer in answers]
    with api.registry.read() as session:
        assert sorted(names) == sorted(job.machine_name for job in jobs.listing(session))


def test_one_failing_write_leaves_those_beside_it_alone(registry: Registry) -> None:
    """In a shared transaction each caller gets its own result or error, after the commit."""
    writer = GroupWriter(registry)

    def add(name: str):
        def action(session: Session) -> str:
            return machines.add(session, name, now=utc_now()).name

        return action

    async def write() -> list[Any]:
        names = ["node-1", "node-2", "node-1", "node-3"]
        return await asyncio.gather(
            *(writer.run(add(name)) for name in names), return_exceptions=True
        )

    results = asyncio.run(write())
    writer.close()
    assert ["node-1", "node-2", "node-3"] == [r for r in results if isinstance(r, str)]
    assert [NameTaken] == [type(r) for r in results if not isinstance(r, str)]
    with registry.read() as session:
        found = [machine.name for machine in machines.listing(session)]
    assert ["node-1", "node-2", "node-3"] == found


def test_a_closed_writer_takes_nothing(registry: Registry) -> None:
    """After closing, what waited is written and a new call fails."""
    writer = GroupWriter(registry)
    writer.close()
    with pytest.raises(RuntimeError):
        asyncio.run(writer.run(lambda session: None))
