"""What the endpoints work with, handed to each through FastAPI's dependencies."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Depends, Path, Query, Request

from fleet.registry import Registry
from fleet.settings import Settings
from netboot.metrics import Metrics
from netboot.orchestrator import Orchestrator
from netboot.outbox import Outbox
from netboot.writer import GroupWriter


@dataclass(frozen=True)
class Services:
    """The parts of one application; `outbox` is None where nothing hands jobs to Prefect."""

    settings: Settings
    registry: Registry
    orchestrator: Orchestrator
    outbox: Outbox | None
    writer: GroupWriter
    metrics: Metrics

    def wake_outbox(self) -> None:
        """Tell the outbox, if there is one, that a job may wait."""
        if self.outbox is not None:
            self.outbox.wake()


async def services_of(request: Request) -> Services:
    return request.app.state.services


Use = Annotated[Services, Depends(services_of)]

# Ids and names share this form; what does not fit it never reaches a database.
REFERENCE = r"^[a-z0-9][a-z0-9-]{0,62}$"
MachineReference = Annotated[
    str, Path(pattern=REFERENCE, description="A machine's id, or its name.", examples=["node-3"])
]
JobId = Annotated[
    str,
    Path(
        pattern=REFERENCE,
        description="A job's id.",
        examples=["5f1c4f0e-3c0b-4a7e-9d3e-2f6f1d1f9a11"],
    ),
]
MachineFilter = Annotated[
    str | None, Query(pattern=REFERENCE, description="A machine's id, or its name.")
]


def utc_now() -> datetime:
    return datetime.now(UTC)
