"""What the Prefect server must know: the work pool, the deployments and the automation."""

import io
import os
import shlex
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from uuid import UUID

from prefect.cli import app
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.workers.process import ProcessWorker

from fleet.errors import SetupFailed
from fleet.settings import CHECKOUT, Settings

POOL_TYPE = "process"
AUTOMATION = "record failures"
RECORDER = "record-failure/record-failure"
RECORDED = ("handle-call-home", "run-playbook")
# `python -m prefect.engine`, its imports undisturbed by the garbage collector: a fifth faster.
_ENGINE = (
    "import gc, runpy; gc.disable(); import prefect.flow_engine; gc.freeze(); gc.enable(); "
    "runpy.run_module('prefect.engine', run_name='__main__')"
)


def ensure_work_pool(settings: Settings) -> None:
    """Create the pool of process workers, or bring its limit and command up to date."""
    template = ProcessWorker.get_default_base_job_template()
    # A configured command spares each run a look for what to install; the interpreter is the one
    # that deploys, which is the venv's.
    command = shlex.join([sys.executable, "-c", _ENGINE])
    template["variables"]["properties"]["command"]["default"] = command
    # A run outlives its worker. A pipe to the worker would break then, and end the run at the next
    # line of its log, which Prefect has anyway.
    template["variables"]["properties"]["stream_output"]["default"] = False
    with get_client(sync_client=True) as client:
        try:
            pool = client.read_work_pool(settings.work_pool)
        except ObjectNotFound:
            wanted = WorkPoolCreate(
                name=settings.work_pool,
                type=POOL_TYPE,
                base_job_template=template,
                concurrency_limit=settings.max_runs,
            )
            client.create_work_pool(wanted)
            return
        if (pool.base_job_template, pool.concurrency_limit) != (template, settings.max_runs):
            update = WorkPoolUpdate(base_job_template=template, concurrency_limit=settings.max_runs)
            client.update_work_pool(settings.work_pool, update)


def deploy(settings: Settings) -> None:
    """Deploy what prefect.yaml lists. Raises SetupFailed with what Prefect said."""
    os.environ["MUSTER_WORK_POOL"] = settings.work_pool
    said = io.StringIO()
    # Prefect's own command, in this process because its imports take a second.
    arguments, sys.argv = sys.argv, ["prefect", "--no-prompt", "deploy", "--all"]
    try:
        with chdir(CHECKOUT), redirect_stdout(said), redirect_stderr(said):
            app()
        status: object = 0
    except SystemExit as end:
        status = end.code
    finally:
        sys.argv = arguments
    if status:
        raise SetupFailed(
            f"`prefect deploy --all` failed: {said.getvalue()[-2000:]}",
            remedy="See that the Prefect server runs and prefect.yaml is sound.",
        )


def ensure_automation() -> None:
    """Create or update the automation that starts the recorder for each run that fails."""
    with get_client(sync_client=True) as client:
        wanted = automation(client.read_deployment_by_name(RECORDER).id)
        known = client.read_automations_by_name(AUTOMATION)
        if not known:
            client.create_automation(wanted)
        elif _told(known[0]) != _told(wanted):
            client.update_automation(known[0].id, wanted)


def automation(recorder_id: UUID) -> AutomationCore:
    """The automation: whatever ends a deployed run as failed or crashed, the recorder looks at it.

    The event is named after the state's name, so its type is matched. Only deployed runs have a
    deployment among their related resources, and the recorder's own is not among those named.
    """
    return AutomationCore(
        name=AUTOMATION,
        description="Writes to TODO.md the failures that no hook could.",
        trigger=EventTrigger(
            expect={"prefect.flow-run.*"},
            match=ResourceSpecification(
                {
                    "prefect.resource.id": "prefect.flow-run.*",
                    "prefect.state-type": ["FAILED", "CRASHED"],
                }
            ),
            match_related=ResourceSpecification(
                {"prefect.resource.role": "deployment", "prefect.resource.name": list(RECORDED)}
            ),
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=recorder_id,
                # A plain "{{ … }}" would be rendered as JSON, which an id is not.
                parameters={
                    "flow_run_id": {
                        "__prefect_kind": "jinja",
                        "template": "{{ flow_run.id }}",
                    }
                },
                job_variables=None,
            )
        ],
    )


def _told(automation: AutomationCore) -> dict[str, object]:
    """What of an automation is ours to say; the server adds ids to triggers."""
    shown = automation.model_dump(mode="json", include={"description", "trigger", "actions"})
    shown["trigger"].pop("id", None)
    return shown
