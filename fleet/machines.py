"""Machines in the registry: add, find, and every change of state.

Nothing outside this file assigns a machine's state, and each change leaves an event.
"""

from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from fleet import events
from fleet.errors import NameTaken, UnknownMachine
from fleet.models import Machine
from fleet.names import check_name
from fleet.states import ACTIVE_JOB_STATES, JobState, MachineState, check_machine_transition
from fleet.tables import JobRow, MachineRow, TokenRow


def add(session: Session, name: str, *, now: datetime) -> Machine:
    """Add a machine that an operator approved by naming it.

    Raises InvalidName or NameTaken.
    """
    row = MachineRow(
        name=check_name(name), state=MachineState.APPROVED, created_at=now, updated_at=now
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise NameTaken(
            f"A machine called {name} exists.",
            remedy=f"Take another name, or retire it first: muster machine retire {name}",
        ) from error
    events.record(
        session, at=now, kind="added", message=f"{name} added and approved", machine_id=row.id
    )
    return Machine.model_validate(row)


def get(session: Session, reference: str) -> Machine:
    """The machine with this id, or the living one with this name. Raises UnknownMachine."""
    return Machine.model_validate(_row(session, reference))


def listing(session: Session, *, retired: bool = False) -> list[Machine]:
    """All machines by name; retired ones only when asked for."""
    query = select(MachineRow).order_by(MachineRow.name, MachineRow.created_at)
    if not retired:
        query = query.where(MachineRow.state != MachineState.RETIRED)
    return [Machine.model_validate(row) for row in session.scalars(query)]


def counts(session: Session) -> dict[str, int]:
    """How many machines are in each state."""
    tally = {str(state): 0 for state in MachineState}
    found = session.execute(select(MachineRow.state, func.count()).group_by(MachineRow.state))
    return tally | {state: count for state, count in found}  # noqa: C416 - rows are no mapping


def transition(
    session: Session,
    machine_id: str,
    new: MachineState,
    *,
    now: datetime,
    message: str,
    reason: str | None = None,
    job_id: str | None = None,
) -> Machine:
    """Move a machine to state `new` and record it; staying in a state changes nothing.

    `reason` is what `machine show` says of a failure. Raises UnknownMachine, IllegalTransition.
    """
    row = _row(session, machine_id, lock=True)
    move(session, row, new, now=now, message=message, reason=reason, job_id=job_id)
    return Machine.model_validate(row)


def move(
    session: Session,
    row: MachineRow,
    new: MachineState,
    *,
    now: datetime,
    message: str,
    reason: str | None = None,
    job_id: str | None = None,
) -> None:
    """`transition` for a caller that has read `row` in this transaction, and locked it."""
    old = MachineState(row.state)
    if old is new:
        return
    check_machine_transition(row.name, old, new)
    row.state = new
    row.reason = reason
    row.updated_at = now
    if new is MachineState.READY:
        row.ready_at = now
    events.record(
        session, at=now, kind=new, message=message, machine_id=row.id, job_id=job_id,
        data={"from": old, "to": new},
    )  # fmt: skip


def retire(session: Session, reference: str, *, now: datetime) -> Machine:
    """Retire a machine: its tokens are revoked and jobs not yet handed on are cancelled.

    Raises UnknownMachine, IllegalTransition (already retired).
    """
    row = _row(session, reference, lock=True)
    check_machine_transition(row.name, MachineState(row.state), MachineState.RETIRED)
    session.execute(
        update(TokenRow)
        .where(TokenRow.machine_id == row.id, TokenRow.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    session.execute(
        update(JobRow)
        .where(JobRow.machine_id == row.id, JobRow.state == JobState.QUEUED)
        .values(state=JobState.CANCELLED, finished_at=now, error="the machine was retired")
    )
    return transition(session, row.id, MachineState.RETIRED, now=now, message=f"{row.name} retired")


def has_active_job(session: Session, machine_id: str) -> bool:
    query = select(JobRow.id).where(
        JobRow.machine_id == machine_id, JobRow.state.in_(ACTIVE_JOB_STATES)
    )
    return session.scalar(query.limit(1)) is not None


def _row(session: Session, reference: str, *, lock: bool = False) -> MachineRow:
    by_name = (MachineRow.name == reference) & (MachineRow.state != MachineState.RETIRED)
    query = select(MachineRow).where((MachineRow.id == reference) | by_name)
    if lock:
        # What was read before the lock was held may have changed meanwhile.
        query = query.with_for_update().execution_options(populate_existing=True)
    row = session.scalar(query)
    if row is None:
        raise UnknownMachine(
            f"There is no machine {reference[:80]!r}.", remedy="See: muster machine list"
        )
    return row
