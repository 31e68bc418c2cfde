"""Enrolment: a machine's token, and what a call home with it does.

`judge` decides purely; `call_home` looks, asks `judge`, and writes the row, the event and the
job of an accepted call in the caller's one transaction.
"""

import hashlib
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from fleet import events, machines
from fleet.errors import (
    HostKeysChanged,
    MusterError,
    TokenExpired,
    TokenRevoked,
    TokenSpent,
    TokenUnknown,
)
from fleet.models import Job, Machine
from fleet.reports import CallHome
from fleet.states import JobState, MachineState
from fleet.tables import JobRow, MachineRow, TokenRow

TOKEN_BYTES = 32
HANDLE_CALL_HOME = "handle-call-home"


@dataclass(frozen=True)
class Accepted:
    """The call counts; `job` is its job, new unless this boot had called before."""

    job: Job
    new: bool


@dataclass(frozen=True)
class Refused:
    """The call does not count. What was recorded of it must still be committed."""

    error: MusterError


@dataclass(frozen=True)
class TokenFacts:
    """What `judge` has to know of a token."""

    machine_name: str
    expires_at: datetime
    spent_at: datetime | None
    revoked_at: datetime | None
    ssh_host_keys: tuple[str, ...] | None


def digest(token: str) -> str:
    """SHA-256 in hex. Tokens carry 256 bits of chance, so no salt or slow hash is needed."""
    return hashlib.sha256(token.encode()).hexdigest()


def mint(session: Session, machine: Machine, *, now: datetime, life: int) -> str:
    """Make a token of `life` seconds for one enrolment; it is returned once and kept nowhere.

    Earlier tokens of the machine are revoked.
    """
    session.execute(
        update(TokenRow)
        .where(TokenRow.machine_id == machine.id, TokenRow.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    token = secrets.token_urlsafe(TOKEN_BYTES)
    session.add(
        TokenRow(
            machine_id=machine.id,
            digest=digest(token),
            created_at=now,
            expires_at=now + timedelta(seconds=life),
        )
    )
    return token


def judge(token: TokenFacts, host_keys: tuple[str, ...], now: datetime) -> MusterError | None:
    """The reason to refuse a call home with these keys under this token, or None. Pure."""
    new_token = f"Make a new token on the control node: muster machine token {token.machine_name}"
    if token.revoked_at is not None:
        return TokenRevoked(
            f"The token of {token.machine_name} was revoked at {token.revoked_at:%F %T}Z.",
            remedy=new_token,
        )
    if token.spent_at is not None:
        return TokenSpent(
            f"{token.machine_name} became ready with this token at {token.spent_at:%F %T}Z.",
            remedy=f"Nothing is left to do; to enrol it afresh: {new_token}",
        )
    if now >= token.expires_at:
        return TokenExpired(
            f"The token of {token.machine_name} expired at {token.expires_at:%F %T}Z.",
            remedy=new_token,
        )
    if token.ssh_host_keys is not None and token.ssh_host_keys != host_keys:
        return HostKeysChanged(
            f"{token.machine_name} called with other SSH host keys than the first time.",
            remedy="If it was reinstalled on purpose: "
            f"muster machine token {token.machine_name}, and enrol it with the new token. "
            "If not, another machine holds its token: revoke it by making a new one.",
        )
    return None


def call_home(
    session: Session, token: str, report: CallHome, *, peer: str, now: datetime
) -> Accepted | Refused:
    """Take a call home from address `peer` under `token`.

    The caller commits in either case. Raises TokenUnknown, with nothing written.
    """
    row = _token_row(session, token)
    machine = row.machine
    refusal = judge(_facts(row), report.host_keys, now)
    if refusal is not None:
        _record_refusal(session, machine, refusal, peer, now)
        return Refused(refusal)
    job = session.scalar(
        select(JobRow).where(
            JobRow.machine_id == machine.id,
            JobRow.kind == HANDLE_CALL_HOME,
            JobRow.boot_id == report.boot_id,
        )
    )
    if job is not None:
        return Accepted(Job.model_validate(job), new=False)
    _note_report(row, report, peer, now)
    job = JobRow(
        machine=machine,
        kind=HANDLE_CALL_HOME,
        state=JobState.QUEUED,
        boot_id=report.boot_id,
        created_at=now,
    )
    session.add(job)
    session.flush()
    _record_call(session, machine, job, report, peer, now)
    return Accepted(Job.model_validate(job), new=True)


def machine_of_token(session: Session, token: str, *, now: datetime) -> Machine:
    """The machine that may read its own job with this token, also after it was spent.

    Raises TokenUnknown, TokenRevoked or TokenExpired.
    """
    row = _token_row(session, token)
    facts = _facts(row)
    refusal = judge(facts, facts.ssh_host_keys or (), now)
    if refusal is not None and not isinstance(refusal, TokenSpent):
        raise refusal
    return Machine.model_validate(row.machine)


def is_usable(session: Session, token: str, *, now: datetime) -> bool:
    """Whether a call home with this token would be taken, host keys aside."""
    row = session.scalar(select(TokenRow).where(TokenRow.digest == digest(token)))
    if row is None:
        return False
    facts = _facts(row)
    return judge(facts, facts.ssh_host_keys or (), now) is None


def spend_tokens(session: Session, machine_id: str, *, now: datetime) -> None:
    """End the enrolment: a ready machine's tokens accept no further call home."""
    session.execute(
        update(TokenRow)
        .where(TokenRow.machine_id == machine_id, TokenRow.spent_at.is_(None))
        .values(spent_at=now)
    )


def _token_row(session: Session, token: str) -> TokenRow:
    # FOR UPDATE: two first calls with other keys must not both bind theirs.
    row = session.scalar(select(TokenRow).where(TokenRow.digest == digest(token)).with_for_update())
    if row is None:
        raise TokenUnknown(
            "The token is missing or is none of ours.",
            remedy="Send the token of this machine as `Authorization: Bearer <token>`; "
            "`muster machine add NAME` makes one.",
        )
    return row


def _facts(row: TokenRow) -> TokenFacts:
    keys = row.ssh_host_keys
    return TokenFacts(
        machine_name=row.machine.name,
        expires_at=row.expires_at,
        spent_at=row.spent_at,
        revoked_at=row.revoked_at,
        ssh_host_keys=None if keys is None else tuple(keys),
    )


def _note_report(row: TokenRow, report: CallHome, peer: str, now: datetime) -> None:
    machine = row.machine
    row.ssh_host_keys = list(report.host_keys)
    machine.ssh_host_keys = list(report.host_keys)
    machine.address = peer
    machine.boot_id = report.boot_id
    machine.mac = report.mac or machine.mac
    machine.hardware = report.hardware or machine.hardware
    machine.updated_at = now


def _record_call(
    session: Session, machine: MachineRow, job: JobRow, report: CallHome, peer: str, now: datetime
) -> None:
    claims = {
        "address": report.address if report.address not in (None, peer) else None,
        "hostname": report.hostname if report.hostname != machine.name else None,
    }
    data = {"peer": peer, "boot_id": report.boot_id}
    data |= {f"claimed_{name}": value for name, value in claims.items() if value is not None}
    events.record(
        session, at=now, kind="call-home", message=f"{machine.name} called home from {peer}",
        machine_id=machine.id, job_id=job.id, data=data,
    )  # fmt: skip
    # While it is being configured it stays so; its new job waits for the machine's lock.
    if machine.state != MachineState.CONFIGURING:
        machines.move(
            session, machine, MachineState.CALLED_HOME, now=now,
            message=f"{machine.name} waits to be configured", job_id=job.id,
        )  # fmt: skip


def _record_refusal(
    session: Session, machine: MachineRow, refusal: MusterError, peer: str, now: datetime
) -> None:
    events.record(
        session, at=now, kind="call-home-refused", message=str(refusal), machine_id=machine.id,
        data={"peer": peer, "why": refusal.slug},
    )  # fmt: skip
