"""A role fails, a person clicks Retry in Prefect's UI, and the machine becomes ready."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from fleet import todo
from fleet.settings import CHECKOUT
from fleet.states import JobState, MachineState
from netboot.first_boot import TOKEN_PATH, UNIT_NAME
from tests.e2e.conftest import StartStand
from tests.e2e.stand import PLAYBOOKS, Stand, wait_until

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # The page must do without the rest of the world.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)
CAUSE = "cause"
MACHINE = "lab-1"
PAGE_MS = 60_000
RETRY_MS = 120_000
# Read at import: within a test, the settings of whoever runs it are out of sight.
SCREENSHOTS = os.environ.get("MUSTER_TEST_SCREENSHOTS")

pytestmark = [pytest.mark.root, pytest.mark.timeout(500)]


@pytest.fixture(scope="module")
def stand(start_stand: StartStand) -> Stand:
    """`./muster up --lab 1` whose machine's run has failed, for a cause that can be taken away."""
    if not CHROMIUM.exists():
        pytest.skip("Chromium is not installed (Debian package chromium)")
    stand = start_stand(1, playbook=PLAYBOOKS / "fragile.yaml", reconcile_every=2.0)
    (stand.settings.home / CAUSE).touch()
    stand.start()
    stand.wait_until_up()
    return stand


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser.new_page(viewport={"width": 1280, "height": 800})
        browser.close()


def test_retry_in_the_browser_finishes_a_failed_run(stand: Stand, page: Page) -> None:
    """Retry in Prefect's UI, with the cause gone, makes the machine ready and ticks its entry."""
    run_id = the_failed_run(stand)
    assert [(True, 1)] == entries(stand, run_id)
    assert stand.settings.flow_run_url(run_id) in stand.settings.todo_file.read_text()

    page.goto(stand.settings.flow_run_url(run_id))
    completed = page.get_by_text("Completed", exact=True)
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible(timeout=PAGE_MS)
    expect(completed).to_have_count(0)
    (stand.settings.home / CAUSE).unlink()
    page.get_by_role("button", name="Retry", exact=True).click()
    page.locator(".p-modal").get_by_role("button", name="Retry", exact=True).last.click()
    expect(completed.first).to_be_visible(timeout=RETRY_MS)
    take_screenshot(page)

    wait_until(lambda: [(False, 1)] == entries(stand, run_id), "the entry to be ticked", 30.0)
    assert f"by run {run_id}" in stand.settings.todo_file.read_text()
    assert MachineState.READY is stand.machine(MACHINE).state
    assert (JobState.SUCCEEDED, run_id, 2) == the_job(stand)
    assert ["Cached", "Completed"] == ends_of(stand, run_id, "pin host keys")
    assert ["Cached", "Completed"] == ends_of(stand, run_id, "refresh inventory")
    assert ["Completed"] == ends_of(stand, run_id, "verify")
    assert 2 == stand.prefect.runs([run_id])[run_id].run_count


def test_a_ready_machine_calls_no_more(stand: Stand) -> None:
    """The first-boot unit disabled itself and removed its token when it was told `ready`."""
    assert MachineState.READY is stand.machine(MACHINE).state

    def is_enabled() -> str:
        return stand.on_machine(MACHINE, "systemctl", "is-enabled", UNIT_NAME)

    wait_until(lambda: "disabled" == is_enabled(), "the first-boot unit to disable itself", 30.0)
    assert "" == stand.on_machine(MACHINE, "find", "/etc/muster", "-name", Path(TOKEN_PATH).name)
    assert 1 == len(stand.jobs())


def test_ctrl_c_stops_the_stand(stand: Stand) -> None:
    """Ctrl-C ends `up` with exit code 0, also after a machine had failed."""
    assert 0 == stand.stop()
    assert [] == stand.marked()


def the_failed_run(stand: Stand) -> str:
    """The id of the only job's run, once the job has failed and TODO.md tells of it."""

    def has_failed() -> bool:
        states = [job.state for job in stand.jobs()]
        return [JobState.FAILED] == states and stand.settings.todo_file.exists()

    wait_until(has_failed, "the machine's job to fail", 60.0, stand.explain)
    run_id = stand.jobs()[0].flow_run_id
    assert run_id is not None
    return run_id


def the_job(stand: Stand) -> tuple[JobState, str | None, int]:
    """State, run and attempts of the only job."""
    [job] = stand.jobs()
    return job.state, job.flow_run_id, job.attempts


def entries(stand: Stand, run_id: str) -> list[tuple[bool, int]]:
    """Of each entry in TODO.md whether it is open, and its attempt; all are about this run."""
    listed = todo.read(stand.settings.todo_file)
    assert {run_id} == {entry.flow_run_id for entry in listed}
    return [(entry.open, entry.attempt) for entry in listed]


def ends_of(stand: Stand, run_id: str, step: str) -> list[str]:
    """How each of a step's task runs ended; `Cached` did nothing, for it had been done before."""
    body: dict[str, Any] = {"flow_runs": {"id": {"any_": [run_id]}}}
    url = f"{stand.settings.prefect_url}/api/task_runs/filter"
    found = httpx.post(url, json=body, trust_env=False, timeout=15.0).json()
    return sorted(t["state_name"] for t in found if t["name"].startswith(f"{step}-"))


def take_screenshot(page: Page) -> None:
    """Keep a picture in the checkout's folder that MUSTER_TEST_SCREENSHOTS names, if it does."""
    if SCREENSHOTS is not None:
        page.screenshot(path=CHECKOUT / SCREENSHOTS / "retry-in-prefect.png")
