"""Run a playbook on one machine, some, or the whole fleet."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, cast
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.logging import get_run_logger
from pydantic import Field

from fleet.errors import InvalidRequest, UnknownMachine
from fleet.models import Machine
from fleet.settings import CHECKOUT, Settings
from flows.hooks import lifecycle_flow
from flows.runs import Run, current_run, label_run, machines_held
from tasks import ansible, inventory, ssh
from tasks.ansible_events import Event, log_line, progress
from tasks.ansible_results import (
    PlaybookResult,
    cause_of,
    error_of,
    merged,
    recap,
    transient_failures,
)
from tasks.patience import TRANSIENT, Log, patiently

EVERY_MACHINE = "machines"
_PROGRESS_SECONDS = 2.0

Limit = Annotated[
    str,
    Field(min_length=1, max_length=4096, examples=["node-3", "node-3,node-4", EVERY_MACHINE]),
]
Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$", max_length=100)]


@lifecycle_flow(name="run-playbook", flow_run_name="{limit}")
def run_playbook(
    limit: Limit = EVERY_MACHINE,
    playbook: str | None = None,
    tags: list[Tag] = [],  # noqa: B006 - the default is read for the schema, never written
    check: bool = False,
) -> PlaybookResult:
    """Run an Ansible playbook on machines of the registry and say what it changed.

    Args:
        limit: A machine's name, several with commas between, or `machines` for all.
        playbook: Path of a playbook in the checkout; the one of the settings if left out.
        tags: Run only tasks with one of these tags; all if empty.
        check: Only say what would change, and change nothing.
    """
    run, log = current_run(), get_run_logger()
    path = resolve_playbook(playbook, run.settings)
    fleet = run.records.fleet()
    chosen = resolve_limit(limit, fleet)
    label_run([machine.name for machine in chosen])
    with machines_held(run, chosen, log):
        for machine in chosen:
            ssh.pin_host_keys(run.settings, machine)
        inventory.refresh(run.settings, fleet)
        note_start(run, chosen, path, check=check)
        request = ansible.PlaybookRun(
            playbook=path,
            limit=tuple(machine.name for machine in chosen),
            tags=tuple(tags),
            check=check,
            machine_ids=tuple(machine.id for machine in chosen),
            flow_run_id=run.id,
        )
        result = run_patiently(run, request, log)
        note_results(run, chosen, path, result)
    show_recap(result, log)
    error = error_of(result, path.name)
    if error is not None:
        raise error
    log.info("%s: %s", path.name, result.summary)
    return result


def resolve_playbook(playbook: str | None, settings: Settings) -> Path:
    """The file to run. Raises InvalidRequest unless it is a YAML file of the checkout, or of the
    folder of the playbook that the settings name.
    """
    if playbook is None:
        return settings.playbook
    rooms = (CHECKOUT.resolve(), settings.playbook.parent.resolve())
    path = next((found for room in rooms if (found := (room / playbook).resolve()).is_file()), None)
    if path is None or path.suffix not in {".yaml", ".yml"}:
        raise InvalidRequest(
            f"There is no playbook {playbook[:200]!r}.",
            remedy=f"Name a .yaml file by its path below {CHECKOUT}.",
        )
    if not any(path.is_relative_to(room) for room in rooms):
        raise InvalidRequest(
            f"The playbook {playbook[:200]!r} lies outside of the checkout.",
            remedy=f"Put it below {CHECKOUT}.",
        )
    return path


def resolve_limit(limit: str, fleet: Sequence[Machine]) -> list[Machine]:
    """The machines that a limit names, by name; `machines` are all that can be managed. Pure.

    Raises UnknownMachine, or InvalidRequest for a machine that never called home and for a limit
    that names none.
    """
    if limit.strip() == EVERY_MACHINE:
        chosen = [machine for machine in fleet if inventory.can_be_managed(machine)]
        if not chosen:
            raise InvalidRequest(
                "No machine has called home yet.", remedy="Add one: muster machine add NAME"
            )
        return chosen
    names = sorted({name.strip() for name in limit.split(",") if name.strip()})
    known = {machine.name: machine for machine in fleet}
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UnknownMachine(
            f"The registry has no machine {', '.join(unknown)[:200]!r}.",
            remedy="See: muster machine list",
        )
    for name in names:
        if not inventory.can_be_managed(known[name]):
            raise InvalidRequest(
                f"{name} has not called home yet, so its address and host keys are unknown.",
                remedy=f"See: muster machine show {name}",
            )
    return [known[name] for name in names]


def run_patiently(run: Run, request: ansible.PlaybookRun, log: Log) -> PlaybookResult:
    """Run the playbook, again on hosts for which waiting may help; the results together."""
    result = PlaybookResult()
    last = run.records.tasks_of_last_run(request.machine_ids[0], request.playbook.name)
    report = _Reporter(log, last)
    with suppress(*TRANSIENT):
        for attempt in patiently(run.settings, log):
            with attempt:
                found = ansible.run(run.settings, request, on_event=report)
                result = merged(result, found)
                waiting = transient_failures(result)
                if waiting:
                    again = tuple(failure.host for failure in waiting)
                    request = request.model_copy(update={"limit": again})
                    raise cause_of(waiting[0])
    report.finish()
    return result


class _Reporter:
    """Tells the run's log of each result, and moves the progress artifact now and then."""

    def __init__(self, log: Log, expected: int | None) -> None:
        self._log = log
        self._expected = expected
        self._tasks = 0
        self._told = time.monotonic()
        self._artifact: UUID | None = None
        self._broken = False

    def __call__(self, event: Event) -> None:
        line = log_line(event)
        if line is not None:
            self._log.info("%s", line)
        if event.kind == "playbook_on_task_start":
            self._tasks += 1
            self._move(event.step)

    def _move(self, step: str) -> None:
        moment = time.monotonic()
        if self._broken:
            return
        if self._artifact is not None and moment - self._told < _PROGRESS_SECONDS:
            return
        self._told = moment
        self._show(progress(self._tasks, self._expected), f"task {self._tasks}: {step}")

    def finish(self) -> None:
        if self._artifact is not None and not self._broken:
            self._show(100.0, f"{self._tasks} tasks")

    def _show(self, percent: float, description: str) -> None:
        try:
            if self._artifact is None:
                made = create_progress_artifact(percent, description=description)
                self._artifact = cast("UUID", made)
            else:
                update_progress_artifact(self._artifact, percent, description=description)
        except Exception as error:  # whatever it is, the playbook goes on
            self._broken = True
            self._log.warning("the progress is no longer shown: %s", error)


def show_recap(result: PlaybookResult, log: Log) -> None:
    """Keep the recap, and the failed tasks with it, as an artifact of the run."""
    try:
        create_markdown_artifact(recap(result), key="recap", description=result.summary)
    except Exception as error:  # the result counts, also when it cannot be shown
        log.warning("the recap is not kept: %s", error)


def note_start(run: Run, chosen: Sequence[Machine], playbook: Path, *, check: bool) -> None:
    """Write into each machine's timeline that a playbook begins."""
    message = f"{playbook.name} started{' (check)' * check}"
    run.records.note(
        "playbook-started", [(machine.id, message, {"flow_run_id": run.id}) for machine in chosen]
    )


def note_results(
    run: Run, chosen: Sequence[Machine], playbook: Path, result: PlaybookResult
) -> None:
    """Write each machine's counts into its timeline."""
    failed = {failure.host: failure for failure in result.failures}
    notes = []
    for machine in chosen:
        counts = result.hosts.get(machine.name)
        told = f"{playbook.name} {result.end}"
        if machine.name in failed:
            told = f"{playbook.name} failed at task {failed[machine.name].step!r}"
        elif counts is not None:
            told = f"{playbook.name} finished: ok {counts.ok}, changed {counts.changed}"
        data = {"flow_run_id": run.id, "playbook": playbook.name, "tasks": result.tasks}
        data |= counts.model_dump() if counts else {}
        notes.append((machine.id, told, data))
    run.records.note("playbook-finished", notes)
