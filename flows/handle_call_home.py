"""A machine called home: configure it, look whether it worked, and call it ready."""

from typing import Annotated

from prefect.logging import get_run_logger
from pydantic import Field

from fleet.models import Machine
from flows.hooks import lifecycle_flow
from flows.run_playbook import run_playbook
from flows.runs import Run, current_run, label_run, machines_held
from tasks import steps


@lifecycle_flow(name="handle-call-home")
def handle_call_home(
    machine_id: Annotated[str, Field(min_length=1)],
    job_id: Annotated[str, Field(min_length=1)],
) -> str:
    """Configure a machine that called home with the playbook of the settings.

    Args:
        machine_id: Id of the machine in the registry.
        job_id: Id of the job that this run does.
    """
    run = current_run()
    log = get_run_logger()
    machine = begin(run, machine_id, job_id)
    with machines_held(run, [machine], log):
        # As it is now, after the wait for the lock.
        machine = run.records.machine(machine_id)
        steps.pin_host_keys(run.settings, machine)
        steps.refresh_inventory(run.settings, machine, run.records.fleet())
        run_playbook(limit=machine.name)
        steps.verify(run.settings, machine)
        run.records.job_succeeded(job_id)
    log.info("%s is ready", machine.name)
    return machine.name


def begin(run: Run, machine_id: str, job_id: str) -> Machine:
    """Note in the registry that this run works on the job, and on the run which machine it is."""
    machine = run.records.machine(machine_id)
    run.records.job_started(job_id, run.id)
    label_run([machine.name])
    return machine
