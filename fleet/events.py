"""The timeline: what happened to a machine, one event a line."""

from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from fleet.models import Event
from fleet.tables import EventRow


def record(
    session: Session,
    *,
    at: datetime,
    kind: str,
    message: str,
    machine_id: str | None = None,
    job_id: str | None = None,
    data: dict[str, Any] | None = None,
) -> None:
    """Add an event. `kind` is a short word for machines, `message` a line for people."""
    session.add(
        EventRow(at=at, kind=kind, message=message, machine_id=machine_id, job_id=job_id, data=data)
    )


def timeline(session: Session, machine_id: str, *, limit: int = 1000) -> list[Event]:
    """The newest `limit` events of a machine, oldest first."""
    rows = session.scalars(
        select(EventRow)
        .where(EventRow.machine_id == machine_id)
        .order_by(EventRow.id.desc())
        .limit(limit)
    )
    return [Event.model_validate(row) for row in reversed(rows.all())]
