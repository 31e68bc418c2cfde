"""Who may ask what: operators by their keys, machines by their tokens.

An operator's key is kept nowhere, only its SHA-256 in `settings.api_keys`. Where no key is set
the operators' endpoints are closed.
"""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from fleet import enrolment, jobs
from fleet.errors import TokenUnknown
from fleet.models import Job
from netboot.problems import KeyNeeded
from netboot.services import Use

OPERATOR_KEY = HTTPBearer(
    scheme_name="operatorKey",
    description="An operator's key; `./muster key new` makes one.",
    auto_error=False,
)
MACHINE_TOKEN = HTTPBearer(
    scheme_name="machineToken",
    description="A machine's enrolment token; `./muster machine add NAME` makes one.",
    auto_error=False,
)
Credentials = HTTPAuthorizationCredentials | None


def is_operator(key: str, digests: Sequence[str]) -> bool:
    """Whether `key` is one of those whose SHA-256 is listed, compared in constant time."""
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return any([hmac.compare_digest(digest, known) for known in digests])  # noqa: C419


async def require_operator(
    services: Use, credentials: Annotated[Credentials, Security(OPERATOR_KEY)]
) -> None:
    """Raise KeyNeeded unless an operator asks."""
    digests = services.settings.api_keys
    if not digests:
        raise KeyNeeded(
            "No operator's key is set, so this endpoint is closed.",
            remedy="`./muster key new` makes a key; put its digest into MUSTER_API_KEYS.",
        )
    if credentials is None or not is_operator(credentials.credentials, digests):
        raise KeyNeeded(
            "The operator's key is missing or is none of ours.",
            remedy="Send a key as `Authorization: Bearer <key>`; `./muster key new` makes one.",
        )


async def machine_token(credentials: Annotated[Credentials, Security(MACHINE_TOKEN)]) -> str:
    """The token that a machine sent, not looked at yet. Raises TokenUnknown if there is none."""
    if credentials is None or not credentials.credentials:
        raise TokenUnknown(
            "The machine's token is missing.",
            remedy="Send the token of this machine as `Authorization: Bearer <token>`; "
            "`muster machine add NAME` makes one.",
        )
    return credentials.credentials


async def reader(
    services: Use,
    operator: Annotated[Credentials, Security(OPERATOR_KEY)],
    machine: Annotated[Credentials, Security(MACHINE_TOKEN)],
) -> str | None:
    """None for an operator, else the token that `job_for_reader` judges."""
    sent = operator or machine
    if sent is not None and is_operator(sent.credentials, services.settings.api_keys):
        return None
    return await machine_token(sent)


def job_for_reader(session: Session, token: str | None, job_id: str, *, now: datetime) -> Job:
    """The job, if the holder of `token` (None: an operator) may read it.

    A machine reads its own jobs; of others it learns nothing, not even that they exist.
    Raises TokenUnknown, TokenRevoked, TokenExpired or UnknownJob.
    """
    if token is None:
        return jobs.get(session, job_id)
    machine = enrolment.machine_of_token(session, token, now=now)
    job = jobs.get(session, job_id)
    if job.machine_id != machine.id:
        raise jobs.unknown(job_id)
    return job


ForOperators = Depends(require_operator)
Token = Annotated[str, Depends(machine_token)]
Reader = Annotated[str | None, Depends(reader)]
