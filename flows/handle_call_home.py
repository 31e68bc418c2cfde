"""A machine called home: configure it, look whether it worked, and call it ready."""

from typing import Annotated

from prefect.logging import get_run_logger
from pydantic import Field

from fleet import jobs, machines
from fleet.models import Machine
from flows.hooks import lifecycle_flow
from flows.run_playbook import run_playbook
from flows.runs import Run, current_run, label_run, machines_held, now
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
    machine = begin(run, machine_id, job_id)
    with machines_held(run, [machine], get_run_logger()):
        machine, fleet = look(run, machine_id)
        steps.pin_host_keys(run.settings, machine)
        steps.refresh_inventory(run.settings, machine, fleet)
        run_playbook(limit=machine.name)
        steps.verify(run.settings, machine)
        succeed(run, job_id)
    return machine.name


def begin(run: Run, machine_id: str, job_id: str) -> Machine:
    """Note in the registry that this run has begun to work on the job."""
    with run.registry.write() as session:
        machine = machines.get(session, machine_id)
        jobs.started(session, job_id, run.id, now=now())
    label_run([machine.name])
    return machine


def look(run: Run, machine_id: str) -> tuple[Machine, list[Machine]]:
    """The machine and the fleet as they are now, after the wait for the lock."""
    with run.registry.read() as session:
        return machines.get(session, machine_id), machines.listing(session)


def succeed(run: Run, job_id: str) -> None:
    """Note in the registry that job and machine are done: the machine is ready."""
    with run.registry.write() as session:
        job = jobs.succeeded(session, job_id, now=now())
    get_run_logger().info("%s is ready", job.machine_name)
