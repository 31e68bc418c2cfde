"""What the registry gives out: frozen values, free of any database."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from fleet.states import JobState, MachineState


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, from_attributes=True)


class Machine(Frozen):
    """One machine. Times are in UTC; `hardware` is what the machine reported, as data."""

    id: str
    name: str
    state: MachineState
    reason: str | None
    address: str | None
    mac: str | None
    boot_id: str | None
    ssh_host_keys: tuple[str, ...] | None
    hardware: dict[str, Any] | None
    created_at: datetime
    updated_at: datetime
    ready_at: datetime | None


class Job(Frozen):
    """One piece of work that Prefect does for a machine; its id is the idempotency key."""

    id: str
    machine_id: str
    machine_name: str
    kind: str
    state: JobState
    boot_id: str | None
    flow_run_id: str | None
    attempts: int
    error: str | None
    created_at: datetime
    submitted_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None


class Event(Frozen):
    """One line of a machine's timeline."""

    id: int
    at: datetime
    machine_id: str | None
    job_id: str | None
    kind: str
    message: str
    data: dict[str, Any] | None
