"""Whether Muster lives, whether it can work, and its figures."""

import logging

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from netboot.metrics import CONTENT_TYPE
from netboot.problems import NotReady, documented
from netboot.services import Use

logger = logging.getLogger(__name__)

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: str = "ok"


@router.get("/healthz", responses=documented(408, 413, 500))
async def healthz() -> Health:
    """This process lives."""
    return Health()


@router.get("/readyz", responses=documented(408, 413, 500, 503))
def readyz(services: Use) -> Health:
    """Database and Prefect answer. Calls home are taken also while Prefect does not."""
    missing = []
    try:
        services.registry.check()
    except SQLAlchemyError as error:
        logger.warning("the registry does not answer: %s", type(error).__name__)
        missing.append("the registry's database")
    if not services.orchestrator.healthy():
        missing.append(f"Prefect at {services.settings.prefect_url}")
    if missing:
        raise NotReady(
            f"No answer from {' and '.join(missing)}.",
            remedy="It may be starting; see `./muster up` and the logs.",
        )
    return Health()


@router.get(
    "/metrics",
    response_class=Response,
    responses=documented(408, 413, 500)
    | {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(services: Use) -> Response:
    """Figures in Prometheus' text format."""
    return Response(services.metrics.text(), media_type=CONTENT_TYPE)
