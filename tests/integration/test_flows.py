"""The flows on a real Prefect server and worker, against a real machine over SSH."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fleet import events, locks
from fleet.states import JobState, MachineState
from netboot.orchestrator import FlowRun
from tasks.ansible import private_parent
from tests.conftest import free_port
from tests.integration.flow_stage import CANARY, NAME, Stage, playbook, set_stage, wait_for

pytestmark = pytest.mark.root

FAILS = """
name: Fail on purpose
ansible.builtin.command:
  cmd: cat /root/cure
changed_when: false
"""
COUNTS = """
name: Count the runs
ansible.builtin.lineinfile:
  path: /root/runs
  line: "{{ lookup('pipe', 'date +%s%N') }}"
  create: true
  mode: "0600"
"""
SLOW = """
name: Take a long time
ansible.builtin.command:
  cmd: sleep 120
changed_when: false
"""


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """The stage, put up once for all tests of this file."""
    with set_stage(free_port()) as made:
        yield made


@pytest.fixture(autouse=True)
def _clean(stage: Stage) -> Iterator[None]:
    """Each test begins with a machine without our files and with its sshd running."""
    stage.inside("rm", "-f", "/root/cure", "/root/runs", "/etc/ansible/facts.d/muster.fact")
    stage.play(playbook())
    yield
    stage.inside("systemctl", "start", "ssh")


def runs_counted(stage: Stage) -> int:
    return len(stage.inside("sh", "-c", "cat /root/runs 2>/dev/null || true").splitlines())


def test_a_call_home_makes_the_machine_ready(stage: Stage) -> None:
    """The run completes, job and machine are done, log, recap and timeline tell of it."""
    run, job = stage.call_home()
    assert "COMPLETED" == stage.end_of(run)
    assert JobState.SUCCEEDED == stage.job(job.id).state
    assert MachineState.READY == stage.machine().state
    stage.wait_for_line(run, "changed: node-1: Write the facts")
    artifacts = {a["type"]: a["data"] for a in stage.artifacts(run)}
    assert "| node-1 | 3 |" in artifacts["markdown"]
    assert 100.0 == artifacts["progress"]
    with stage.registry.read() as session:
        kinds = [e.kind for e in events.timeline(session, stage.machine().id)]
    expected = ["call-home", "called-home", "submitted", "configuring"]
    expected += ["playbook-started", "playbook-finished", "ready"]
    assert expected == [kind for kind in kinds if kind != "added"][-7:]
    assert not stage.entries(run)


def test_running_again_changes_nothing(stage: Stage) -> None:
    """A second call home and a retry of the completed run leave machine and files as they were."""
    first, _ = stage.call_home()
    assert "COMPLETED" == stage.end_of(first)
    view = stage.settings.inventory_dir / "machines.yaml"
    before = (view.stat().st_mtime_ns, view.read_bytes())
    second, job = stage.call_home()
    assert "COMPLETED" == stage.end_of(second)
    stage.wait_for_line(second, "site.yaml: ok 3, changed 0")
    stage.orchestrator.retry(second.id)
    wait_for("the retry", lambda: len(stage.orchestrator.history(second.id)) > 8)
    assert "COMPLETED" == stage.end_of(second)
    assert before == (view.stat().st_mtime_ns, view.read_bytes())
    assert JobState.SUCCEEDED == stage.job(job.id).state
    assert MachineState.READY == stage.machine().state


def test_a_failed_role_is_recorded_once_and_a_retry_heals_it(stage: Stage) -> None:
    """One entry with task and message; Retry repeats the unfinished steps alone and ticks it."""
    stage.play(playbook(COUNTS, FAILS))
    run, job = stage.call_home()
    assert "FAILED" == stage.end_of(run)
    entry = stage.wait_for_entry(run)
    assert entry.open
    assert "Fail on purpose" in entry.title
    assert "/root/cure" in entry.title
    assert NAME == entry.machine
    assert JobState.FAILED == stage.job(job.id).state
    assert MachineState.FAILED == stage.machine().state
    assert 1 == runs_counted(stage), "a failed role must not be retried"
    # The automation's recorder has looked as well by the time that its run is over.
    wait_for("the recorder", lambda: recorder_runs(stage, run), 60)
    assert 1 == len(stage.entries(run))
    stage.inside("touch", "/root/cure")
    stage.orchestrator.retry(run.id)
    wait_for("the retry", lambda: stage.state(run) != "FAILED")
    assert "COMPLETED" == stage.end_of(run)
    wait_for("the tick", lambda: not stage.entries(run)[0].open, 20)
    assert 1 == len(stage.entries(run))
    assert 1 == stage.log(run).count("host keys pinned")
    assert 2 == runs_counted(stage)
    assert JobState.SUCCEEDED == stage.job(job.id).state
    assert MachineState.READY == stage.machine().state
    recaps = [a["data"] for a in stage.artifacts(run) if a["type"] == "markdown"]
    assert any("**node-1** at task **Fail on purpose**" in recap for recap in recaps)


def recorder_runs(stage: Stage, run: FlowRun) -> list[str]:
    """The ended runs of the recorder about `run`."""
    found = stage.orchestrator.recent_runs()
    return [
        r.id
        for r in found
        if r.parameters.get("flow_run_id") == run.id and r.state_type == "COMPLETED"
    ]


def test_finished_steps_are_not_repeated_when_only_verify_failed(stage: Stage) -> None:
    """The playbook ran in the first attempt; the second only verifies."""
    stage.play(playbook(COUNTS, facts=""))
    run, job = stage.call_home()
    assert "FAILED" == stage.end_of(run)
    assert "verify" in stage.wait_for_entry(run).title
    machine = stage.machine()
    fact = f'{{"name": "{NAME}", "machine_id": "{machine.id}", "roles": ["common"]}}'
    stage.inside("mkdir", "-p", "/etc/ansible/facts.d")
    stage.inside("sh", "-c", f"echo '{fact}' > /etc/ansible/facts.d/muster.fact")
    stage.orchestrator.retry(run.id)
    wait_for("the retry", lambda: stage.state(run) != "FAILED")
    assert "COMPLETED" == stage.end_of(run)
    assert 1 == runs_counted(stage)
    assert JobState.SUCCEEDED == stage.job(job.id).state


def test_a_killed_flow_leaves_no_ansible_and_its_retry_completes(stage: Stage) -> None:
    """kill -9 of the flow's process: Crashed, Ansible gone, one entry, then Retry heals."""
    stage.play(playbook(COUNTS, SLOW))
    run, job = stage.call_home()
    stage.wait_for_line(run, "Count the runs")
    stage.ansible_of(run)
    stage.process_of(run).kill()
    wait_for("the end of Ansible", lambda: not stage.leftovers(run), 15)
    assert "CRASHED" == stage.end_of(run)
    assert stage.wait_for_entry(run).open
    wait_for("the job's end", lambda: stage.job(job.id).state == JobState.FAILED, 20)
    assert MachineState.FAILED == stage.machine().state
    assert not private_folders(stage)
    stage.play(playbook(COUNTS))
    stage.orchestrator.retry(run.id)
    wait_for("the retry", lambda: stage.state(run) != "CRASHED")
    assert "COMPLETED" == stage.end_of(run)
    wait_for("the tick", lambda: not stage.entries(run)[0].open, 20)
    assert 1 == len(stage.entries(run))
    assert MachineState.READY == stage.machine().state


def test_a_killed_ansible_fails_the_run(stage: Stage) -> None:
    """kill -9 of ansible-playbook: the run fails at once, is recorded, and leaves nothing."""
    stage.play(playbook(COUNTS, SLOW))
    run, job = stage.call_home()
    stage.wait_for_line(run, "Count the runs")
    stage.ansible_of(run).kill()
    assert "FAILED" == stage.end_of(run)
    assert "killed" in stage.wait_for_entry(run).title
    assert not stage.leftovers(run)
    assert JobState.FAILED == stage.job(job.id).state


def test_cancelling_ends_ansible_and_frees_the_machine(stage: Stage) -> None:
    """After a cancellation nothing of the run lives, the lock is free, and no entry is made."""
    stage.play(playbook(COUNTS, SLOW))
    run, job = stage.call_home()
    stage.wait_for_line(run, "Count the runs")
    lock = locks.machine_lock_path(stage.settings.locks_dir, job.machine_id)
    assert locks.is_held(lock)
    began = time.monotonic()
    stage.orchestrator.cancel(run.id)
    assert "CANCELLED" == stage.end_of(run)
    assert time.monotonic() - began < 25
    assert not stage.leftovers(run)
    assert not locks.is_held(lock)
    assert JobState.CANCELLED == stage.job(job.id).state
    assert not stage.entries(run)
    assert not private_folders(stage)
    stage.play(playbook())
    again, _ = stage.call_home()
    assert "COMPLETED" == stage.end_of(again)


def test_a_run_that_is_cancelled_before_it_begins_does_nothing(stage: Stage) -> None:
    """Its process ends without a word; that it is Cancelled is for the reconciler to say."""
    stage.play(playbook(COUNTS))
    run, _ = stage.call_home()
    wait_for("the worker", lambda: stage.state(run) == "PENDING")
    stage.orchestrator.cancel(run.id)
    stage.process_of(run)
    wait_for("the end of its process", lambda: not stage.processes_of(run), 60)
    assert 0 == runs_counted(stage)
    assert "CANCELLING" == stage.state(run)
    assert not stage.entries(run)
    stage.orchestrator.settle(run.id, "CANCELLED", "its process is gone")


def test_an_unreachable_machine_is_tried_again_and_then_recorded(stage: Stage) -> None:
    """Waiting may cure it, so it is tried as often as the settings say, and again on Retry."""
    stage.inside("systemctl", "stop", "ssh")
    run, job = stage.call_home()
    assert "FAILED" == stage.end_of(run)
    assert "did not answer" in stage.wait_for_entry(run).title
    stage.wait_for_line(run, "Automatic retry 2 of 2")
    assert JobState.FAILED == stage.job(job.id).state
    stage.orchestrator.retry(run.id)
    stage.wait_for_entry(run, attempt=2)
    wait_for("retries", lambda: stage.log(run).count("Automatic retry 2 of 2") == 2, 20)
    stage.inside("systemctl", "start", "ssh")
    stage.orchestrator.retry(run.id)
    wait_for("the retry", lambda: stage.state(run) != "FAILED")
    assert "COMPLETED" == stage.end_of(run)
    wait_for("the ticks", lambda: not any(e.open for e in stage.entries(run)), 20)
    assert [1, 2] == [e.attempt for e in stage.entries(run)]


def test_secrets_reach_the_machine_and_nothing_else(stage: Stage) -> None:
    """The canary is in the machine's file and in no log, artifact, file or command line of ours."""
    stage.play(
        playbook(
            """
name: Use the secret
ansible.builtin.copy:
  dest: /root/secret
  content: "{{ site_secret }}"
  mode: "0600"
""",
            """
name: Say it aloud
ansible.builtin.debug:
  msg: "the secret is {{ site_secret }}, or {{ nested }}"
""",
            """
name: Wait a little
ansible.builtin.pause:
  seconds: 2
""",
            """
name: Fail with {{ site_secret }}
ansible.builtin.fail:
  msg: "failed with {{ site_secret }}"
""",
        )
    )
    run, job = stage.call_home()
    seen: list[str] = []
    while stage.state(run) not in {"FAILED", "COMPLETED", "CRASHED"}:
        seen += canaries_in_processes()
    assert "FAILED" == stage.state(run)
    assert [] == seen
    assert CANARY == stage.inside("cat", "/root/secret")
    stage.wait_for_entry(run)
    stage.wait_for_line(run, "Finished in state Failed")
    assert "the secret is [redacted]" in stage.log(run)
    assert CANARY not in stage.log(run)
    assert CANARY not in str(stage.artifacts(run))
    assert CANARY not in (stage.job(job.id).error or "")
    assert [] == files_with_canary(stage)
    assert not private_folders(stage)


def canaries_in_processes() -> list[str]:
    """The command lines and environments of our processes that hold the canary."""
    found = []
    for process in psutil.process_iter():
        try:
            shown = [*process.cmdline(), *process.environ().values()]
        except (psutil.Error, OSError):
            continue
        found += [part for part in shown if CANARY in part and process.pid != os.getpid()]
    return found


def files_with_canary(stage: Stage) -> list[str]:
    """The files of the control node, beside the secrets' own, that hold the canary.

    Another program reads them: closing a database's file here would release its locks.
    """
    home = stage.settings.home
    places = [p for p in home.iterdir() if p not in {home / "lab", stage.settings.secrets_file}]
    command = ["grep", "-rlF", "--", CANARY, *map(str, places)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def private_folders(stage: Stage) -> list[Path]:
    """The folders of runs that are there."""
    parent = private_parent(stage.settings)
    return list(parent.iterdir()) if parent.exists() else []


def test_a_run_that_no_hook_sees_is_recorded_by_the_automation(stage: Stage) -> None:
    """A deployment whose code cannot be loaded: the recorder writes the entry."""
    found = stage.api("GET", "/deployments/name/run-playbook/run-playbook")
    path = f"/deployments/{found['id']}"
    stage.api("PATCH", path, {"entrypoint": "flows.no_such_module.run_playbook"})
    try:
        run = stage.run("run-playbook/run-playbook", {"limit": NAME})
        assert stage.end_of(run) in {"CRASHED", "FAILED"}
        assert stage.wait_for_entry(run).open
    finally:
        stage.api("PATCH", path, {"entrypoint": found["entrypoint"]})
    assert 1 == len(stage.entries(run))


def test_a_limit_that_names_no_machine_fails_before_ansible(stage: Stage) -> None:
    """The error names what the registry does not know."""
    run = stage.run("run-playbook/run-playbook", {"limit": f"{NAME},node-99"})
    assert "FAILED" == stage.end_of(run)
    assert "no machine 'node-99'" in stage.wait_for_entry(run).title


def test_a_playbook_that_matches_no_host_is_a_failure(stage: Stage) -> None:
    """Ansible's status 0 does not hide that nothing was done."""
    assert "COMPLETED" == stage.end_of(stage.call_home()[0])
    stage.play("- hosts: control_nodes\n  tasks: []\n")
    run = stage.run("run-playbook/run-playbook", {"limit": NAME, "check": True})
    assert "FAILED" == stage.end_of(run)
    assert "matched none" in stage.wait_for_entry(run).title


def test_one_run_at_a_time_works_on_a_machine(stage: Stage) -> None:
    """A second run waits for the first one's lock and then does its work."""
    stage.play(playbook(COUNTS, "name: Wait\nansible.builtin.pause:\n  seconds: 3"))
    first, _ = stage.call_home()
    second, _ = stage.call_home()
    assert {"COMPLETED"} == {stage.end_of(first), stage.end_of(second)}
    logs = [stage.log(first), stage.log(second)]
    assert 1 == sum("waiting for node-1, which another run holds" in log for log in logs)
    assert 2 == runs_counted(stage)


def test_a_terminated_flow_is_a_crash(stage: Stage) -> None:
    """SIGTERM from outside is no cancellation: it is recorded."""
    stage.play(playbook(COUNTS, SLOW))
    run, job = stage.call_home()
    stage.wait_for_line(run, "Count the runs")
    stage.process_of(run).send_signal(signal.SIGTERM)
    assert "CRASHED" == stage.end_of(run)
    assert stage.wait_for_entry(run).open
    assert not stage.leftovers(run)
    wait_for("the job's end", lambda: stage.job(job.id).state == JobState.FAILED, 20)
