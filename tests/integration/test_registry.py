"""The registry on real databases: what is committed, what is refused, what happens at once."""

import base64
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from fleet import enrolment, events, jobs, machines
from fleet.enrolment import Accepted, Refused
from fleet.errors import (
    HostKeysChanged,
    IllegalTransition,
    NameTaken,
    SetupFailed,
    TokenRevoked,
    TokenSpent,
    TokenUnknown,
    UnknownJob,
    UnknownMachine,
)
from fleet.models import Machine
from fleet.registry import Registry, open_registry
from fleet.reports import CallHome
from fleet.states import JobState, MachineState

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
BOOT = "7f0c2c0e-5a5a-4c1e-9a57-8f3d4c1b2a90"
NEXT_BOOT = "7f0c2c0e-5a5a-4c1e-9a57-8f3d4c1b2a91"


def key(seed: str) -> str:
    raw = seed.encode().ljust(32, b".")
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + raw
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


def report(boot: str = BOOT, seed: str = "a", **claims: str) -> CallHome:
    body = {"hostname": "node-1", "boot_id": boot, "ssh_host_keys": [key(seed)], **claims}
    return CallHome.model_validate(body)


def add(registry: Registry, name: str = "node-1") -> tuple[Machine, str]:
    with registry.write() as session:
        machine = machines.add(session, name, now=NOW)
        return machine, enrolment.mint(session, machine, now=NOW, life=3600)


def call(registry: Registry, token: str, said: CallHome | None = None) -> Accepted | Refused:
    with registry.write() as session:
        return enrolment.call_home(session, token, said or report(), peer="10.0.0.7", now=NOW)


def accepted(registry: Registry, token: str, said: CallHome | None = None) -> str:
    outcome = call(registry, token, said)
    assert isinstance(outcome, Accepted)
    return outcome.job.id


def state(registry: Registry, name: str = "node-1") -> MachineState:
    with registry.read() as session:
        return machines.get(session, name).state


def kinds(registry: Registry, machine: Machine) -> list[str]:
    with registry.read() as session:
        return [event.kind for event in events.timeline(session, machine.id)]


def run_to(registry: Registry, job_id: str, *steps: str) -> None:
    for step in steps:
        with registry.write() as session:
            if step == "submitted":
                jobs.submitted(session, job_id, "run-1", now=NOW)
            elif step == "started":
                jobs.started(session, job_id, "run-1", now=NOW)
            elif step == "succeeded":
                jobs.succeeded(session, job_id, now=NOW)
            else:
                jobs.ended(session, job_id, JobState(step), now=NOW, reason=f"because {step}")


def test_the_journey_is_the_timeline(registry: Registry) -> None:
    """Added, called home, configured, ready: each step leaves its event, in order."""
    machine, token = add(registry)
    job = accepted(registry, token)
    run_to(registry, job, "submitted", "started", "succeeded")
    expected = ["added", "call-home", "called-home", "submitted", "configuring", "ready"]
    assert expected == kinds(registry, machine)
    assert MachineState.READY == state(registry)


def test_the_same_boot_has_one_job(registry: Registry) -> None:
    """A call repeated, even after the job failed, gives the same job; another boot another."""
    _, token = add(registry)
    first = accepted(registry, token)
    assert first == accepted(registry, token)
    run_to(registry, first, "submitted", "started", "failed")
    assert first == accepted(registry, token)
    assert first != accepted(registry, token, report(NEXT_BOOT))


def test_claims_are_recorded_and_not_used(registry: Registry) -> None:
    """The socket's address and the registry's name count; what differs stands in the event."""
    machine, token = add(registry)
    accepted(registry, token, report(hostname="imposter", address="10.9.9.9"))
    with registry.read() as session:
        kept = machines.get(session, machine.id)
        event = events.timeline(session, machine.id)[1]
    assert ("node-1", "10.0.0.7") == (kept.name, kept.address)
    assert {"claimed_address": "10.9.9.9", "claimed_hostname": "imposter"}.items() <= (
        event.data or {}
    ).items()


def test_other_host_keys_are_refused_and_seen(registry: Registry) -> None:
    """The first call's keys bind; a call with others leaves an event and changes nothing."""
    machine, token = add(registry)
    accepted(registry, token)
    outcome = call(registry, token, report(NEXT_BOOT, seed="b"))
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, HostKeysChanged)
    assert "call-home-refused" == kinds(registry, machine)[-1]
    with registry.read() as session:
        assert (key("a"),) == machines.get(session, machine.id).ssh_host_keys


def test_ready_spends_the_token(registry: Registry) -> None:
    """After ready the token enrols no more, and still reads the machine's own state."""
    machine, token = add(registry)
    job = accepted(registry, token)
    run_to(registry, job, "started", "succeeded")
    outcome = call(registry, token, report(NEXT_BOOT))
    assert isinstance(outcome, Refused)
    assert isinstance(outcome.error, TokenSpent)
    with registry.read() as session:
        assert machine.id == enrolment.machine_of_token(session, token, now=NOW).id


def test_a_new_token_revokes_the_old_and_takes_new_keys(registry: Registry) -> None:
    """A machine reinstalled on purpose enrols again with a fresh token and fresh host keys."""
    machine, old = add(registry)
    job = accepted(registry, old)
    run_to(registry, job, "started", "succeeded")
    with registry.write() as session:
        new = enrolment.mint(session, machine, now=NOW, life=3600)
    refused = call(registry, old)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TokenRevoked)
    accepted(registry, new, report(NEXT_BOOT, seed="b"))
    assert MachineState.CALLED_HOME == state(registry)


def test_a_token_of_ours_alone_counts(registry: Registry) -> None:
    """An unknown token writes nothing at all."""
    machine, token = add(registry)
    with pytest.raises(TokenUnknown):
        call(registry, token + "x")
    assert ["added"] == kinds(registry, machine)


def test_only_the_digest_is_kept(registry: Registry) -> None:
    """No column of the token table holds the token."""
    _, token = add(registry)
    with registry.read() as session:
        rows = session.execute(text("SELECT * FROM tokens")).all()
    assert 1 == len(rows)
    assert token not in str(rows)


def test_names_are_taken_until_retired(registry: Registry) -> None:
    """A living machine keeps its name; a retired one gives it back and stays in the list."""
    machine, token = add(registry)
    with pytest.raises(NameTaken):
        add(registry)
    job = accepted(registry, token)
    with registry.write() as session:
        machines.retire(session, "node-1", now=NOW)
    with registry.read() as session:
        assert JobState.CANCELLED == jobs.get(session, job).state
    refused = call(registry, token)
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, TokenRevoked)
    again, _ = add(registry)
    with registry.read() as session:
        assert [again.id] == [m.id for m in machines.listing(session)]
        assert {again.id, machine.id} == {m.id for m in machines.listing(session, retired=True)}
    with registry.write() as session, pytest.raises(IllegalTransition):
        machines.retire(session, machine.id, now=NOW)


def test_a_failed_job_fails_its_machine_and_a_retry_heals_it(registry: Registry) -> None:
    """The reason is shown while it failed and gone when it is ready."""
    machine, token = add(registry)
    job = accepted(registry, token)
    run_to(registry, job, "submitted", "started", "failed")
    with registry.read() as session:
        assert ("failed", "because failed") == (
            machines.get(session, machine.id).state,
            machines.get(session, machine.id).reason,
        )
    run_to(registry, job, "started", "succeeded")
    with registry.read() as session:
        assert ("ready", None) == (
            machines.get(session, machine.id).state,
            machines.get(session, machine.id).reason,
        )
        assert 2 == jobs.get(session, job).attempts


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (("cancelled",), "called-home"),
        (("submitted", "cancelled"), "failed"),
        (("submitted", "started", "cancelled"), "failed"),
        (("submitted", "started", "failed", "failed"), "failed"),
        (("submitted", "failed"), "failed"),
        (("started", "submitted", "succeeded"), "ready"),
        (("started", "succeeded", "failed"), "ready"),
        (("started", "succeeded", "started", "failed"), "failed"),
    ],
)
def test_ends(registry: Registry, steps: tuple[str, ...], expected: str) -> None:
    """A job's end moves its machine only where the machine was being worked on."""
    _, token = add(registry)
    run_to(registry, accepted(registry, token), *steps)
    assert expected == state(registry)


def test_the_end_of_an_attempt_that_is_over_changes_nothing(registry: Registry) -> None:
    """Somebody who looked before the retry cannot fail the attempt after it."""
    _, token = add(registry)
    job = accepted(registry, token)
    run_to(registry, job, "started", "failed", "started")
    with registry.write() as session:
        jobs.ended(session, job, JobState.FAILED, now=NOW, reason="late", attempt=1)
    assert MachineState.CONFIGURING == state(registry)


def test_an_older_job_does_not_fail_the_newer_one(registry: Registry) -> None:
    """After a reboot the machine is judged by the run that still works on it."""
    _, token = add(registry)
    old = accepted(registry, token)
    run_to(registry, old, "started")
    new = accepted(registry, token, report(NEXT_BOOT))
    run_to(registry, new, "started")
    run_to(registry, old, "failed")
    assert MachineState.CONFIGURING == state(registry)


def test_unknown_things_are_named(registry: Registry) -> None:
    """Errors say what was asked for."""
    with registry.read() as session:
        with pytest.raises(UnknownMachine, match="nobody"):
            machines.get(session, "nobody")
        with pytest.raises(UnknownJob, match="nothing"):
            jobs.get(session, "nothing")


def test_twenty_calls_at_once_make_one_job(registry: Registry) -> None:
    """However many calls of one boot arrive together, they share a job."""
    _, token = add(registry)
    with ThreadPoolExecutor(20) as pool:
        ids = set(pool.map(lambda _: accepted(registry, token), range(20)))
    assert 1 == len(ids)
    with registry.read() as session:
        assert 1 == len(jobs.listing(session))


def test_two_first_calls_bind_one_set_of_keys(registry: Registry) -> None:
    """Of two machines that hold one token, exactly one is believed."""
    _, token = add(registry)
    barrier = threading.Barrier(2)

    def race(seed: str) -> bool:
        barrier.wait(10)
        return isinstance(call(registry, token, report(seed=seed)), Accepted)

    with ThreadPoolExecutor(2) as pool:
        assert [False, True] == sorted(pool.map(race, ["a", "b"]))


def test_two_machines_of_one_name_at_once(registry: Registry) -> None:
    """A name is given once, also to two operators at the same moment."""

    def attempt(_: int) -> bool:
        try:
            add(registry)
        except NameTaken:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert 1 == sum(pool.map(attempt, range(4)))


def test_what_failed_is_rolled_back(registry: Registry) -> None:
    """A transaction is whole or nothing."""

    def break_off() -> None:
        with registry.write() as session:
            machines.add(session, "node-1", now=NOW)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        break_off()
    with registry.read() as session:
        assert [] == machines.listing(session)


def test_many_writers_and_readers(registry: Registry) -> None:
    """Sixteen threads that enrol machines lose none of them."""

    def enrol(number: int) -> None:
        _, token = add(registry, f"node-{number}")
        accepted(registry, token, report(hostname=f"node-{number}"))
        with registry.read() as session:
            jobs.listing(session, machine=f"node-{number}")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(enrol, range(64)))
    with registry.read() as session:
        assert 64 == jobs.counts(session)["queued"]


def test_opening_twice_changes_nothing(
    sqlite_url: str, make_registry: Callable[[str], Registry]
) -> None:
    """An existing registry opens with its content, also by several programs at once."""
    add(make_registry(sqlite_url))
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(make_registry, [sqlite_url] * 4))
    with opened[-1].read() as session:
        assert ["node-1"] == [machine.name for machine in machines.listing(session)]


def test_two_programs_make_one_registry(
    postgresql_url: str, make_registry: Callable[[str], Registry]
) -> None:
    """Migrations from nothing by several programs at once do not collide."""
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(make_registry, [postgresql_url] * 4))
    add(opened[0])


def test_a_newer_registry_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    """A database of a later Muster is left alone, with a word on what to do."""
    open_registry(sqlite_url).close()
    with sqlite3.connect(tmp_path / "registry.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(SetupFailed, match="newer Muster"):
        open_registry(sqlite_url)


def test_a_database_that_is_away_is_named_without_its_password() -> None:
    """The error shows where the registry should be and no secret."""
    with pytest.raises(SetupFailed) as caught:
        open_registry("postgresql+psycopg://muster:hunter2@127.0.0.1:1/none")
    assert "127.0.0.1:1" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_committed_call_survives_kill(sqlite_url: str, tmp_path: Path) -> None:
    """SQLite is told to reach the disk before a commit returns."""
    registry = open_registry(sqlite_url)
    with registry.engine.connect() as connection:
        full = 2
        assert full == connection.execute(text("PRAGMA synchronous")).scalar()
        assert "wal" == connection.execute(text("PRAGMA journal_mode")).scalar()
    registry.close()


def test_expiry_counts_from_minting(registry: Registry) -> None:
    """A token's life is in seconds from when it was made."""
    _, token = add(registry)
    with registry.write() as session:
        late = enrolment.call_home(
            session, token, report(), peer="10.0.0.7", now=NOW + timedelta(seconds=3600)
        )
    assert isinstance(late, Refused)
    assert "token-expired" == late.error.slug
