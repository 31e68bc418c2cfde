"""Record what a hook could not: started by an automation for each run that failed or crashed."""

from typing import Annotated

from prefect.logging import get_run_logger
from pydantic import Field

from flows import failures
from flows.hooks import lifecycle_flow
from flows.runs import current_run


@lifecycle_flow(name="record-failure")
def record_failure(flow_run_id: Annotated[str, Field(min_length=1)]) -> int:
    """Write the failed attempts of a run into TODO.md, unless they stand there already.

    Args:
        flow_run_id: Id of the flow run that failed.
    """
    written = failures.record(current_run().settings, flow_run_id)
    get_run_logger().info("%d entries written", written)
    return written
