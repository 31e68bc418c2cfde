"""POST /api/v1/call-home: a machine says that it is there and may be configured."""

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict
from sqlalchemy.orm import Session

from fleet import enrolment
from fleet.enrolment import Accepted, Refused
from fleet.errors import InvalidRequest, TokenUnknown
from fleet.reports import CallHome
from netboot.access import Token
from netboot.metrics import CALL_HOME_PATH
from netboot.problems import documented
from netboot.services import Use, utc_now

router = APIRouter(tags=["machines"])


class CallHomeAnswer(BaseModel):
    """`status_url` is a path on this API that the machine's token may read."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "job_id": "5f1c4f0e-3c0b-4a7e-9d3e-2f6f1d1f9a11",
                    "machine_id": "0c3a8f5e-58a5-4a9f-8f0e-6f2f3f3a7b42",
                    "status_url": "/api/v1/jobs/5f1c4f0e-3c0b-4a7e-9d3e-2f6f1d1f9a11",
                }
            ]
        }
    )

    job_id: str
    machine_id: str
    status_url: str


@router.post(
    CALL_HOME_PATH,
    status_code=202,
    response_model=CallHomeAnswer,
    responses=documented(400, 401, 403, 408, 409, 413, 422, 429, 500),
)
async def call_home(
    report: CallHome, request: Request, services: Use, token: Token
) -> CallHomeAnswer:
    """Take a machine's call home. The answer comes when machine, event and job are committed.

    The same machine and boot id again get the same job. `address` and `hostname` are claims:
    they are recorded where they differ, and not used.
    """
    peer = _peer(request)
    now = utc_now()

    def take(session: Session) -> Accepted | Refused:
        try:
            return enrolment.call_home(session, token, report, peer=peer, now=now)
        except TokenUnknown as error:
            # Nothing was written: a stranger's call spoils no transaction that others share.
            return Refused(error)

    outcome = await services.writer.run(take)
    if isinstance(outcome, Refused):
        raise outcome.error
    if outcome.new:
        services.wake_outbox()
    job = outcome.job
    return CallHomeAnswer(
        job_id=job.id, machine_id=job.machine_id, status_url=f"/api/v1/jobs/{job.id}"
    )


def _peer(request: Request) -> str:
    if request.client is None:
        raise InvalidRequest(
            "The caller has no address that could be configured over SSH.",
            remedy="Call home over TCP, not through a local socket.",
        )
    return request.client.host
