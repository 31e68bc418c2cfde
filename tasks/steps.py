"""The Prefect tasks: one that has finished in a run is not repeated when the run is retried."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from prefect import task
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from fleet.models import Machine
from fleet.settings import Settings
from tasks import inventory, ssh
from tasks.patience import patiently


def _done_once(context: TaskRunContext, parameters: dict[str, Any]) -> str:
    """The key of a finished step: its run, its name, and the machine as it was known then.

    Another address or other host keys make it a step to do again.
    """
    machine: Machine = parameters["machine"]
    facts = [machine.id, machine.name, machine.address, machine.ssh_host_keys]
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    return f"{context.task_run.flow_run_id}-{context.task.name.replace(' ', '-')}-{digest}"


@task(
    name="pin host keys",
    persist_result=True,
    result_serializer="json",
    cache_key_fn=_done_once,
)
def pin_host_keys(settings: Settings, machine: Machine) -> ssh.Pinned:
    """Trust exactly the host keys that the machine called home with."""
    pinned = ssh.pin_host_keys(settings, machine)
    state = "pinned" if pinned.changed else "pinned already"
    get_run_logger().info(
        "%s: %d host keys %s", machine.name, len(machine.ssh_host_keys or ()), state
    )
    return pinned


@task(
    name="refresh inventory",
    persist_result=True,
    result_serializer="json",
    cache_key_fn=_done_once,
)
def refresh_inventory(
    settings: Settings,
    machine: Machine,  # noqa: ARG001 - its key tells when the step is done
    machines: Sequence[Machine],
) -> inventory.InventoryView:
    """Write the inventory of all `machines`, among them the `machine` this run is about."""
    view = inventory.refresh(settings, machines)
    state = "changed" if view.changed else "unchanged"
    get_run_logger().info("inventory of %d machines %s", len(view.machines), state)
    return view


@task(
    name="verify",
    persist_result=True,
    result_serializer="json",
    cache_key_fn=_done_once,
)
def verify(settings: Settings, machine: Machine) -> ssh.Verification:
    """Look at the machine itself: is it what the playbook should have made of it?"""
    log = get_run_logger()
    seen = patiently(settings, log)(ssh.verify, settings, machine)
    log.info("%s answers by its name and has the roles: %s", machine.name, ", ".join(seen.roles))
    return seen
