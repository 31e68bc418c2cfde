"""tasks.ansible and tasks.ssh against a real machine over SSH, without Prefect."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from fleet import processes
from fleet.errors import (
    DeadlineExceeded,
    HostKeysChanged,
    PackagesLocked,
    PlaybookFailed,
    Unreachable,
    VerificationFailed,
)
from fleet.models import Machine
from fleet.settings import CHECKOUT, Settings
from lab import machine as laboratory
from lab import teardown
from lab.addresses import ssh_proxy_entry
from lab.packages import missing_packages
from lab.provision import InjectedFile
from tasks import inventory, ssh
from tasks.ansible import PlaybookRun, private_parent, run
from tasks.ansible_events import Event
from tasks.ansible_results import End, PlaybookResult, error_of
from tests.integration.flow_stage import CANARY, NAME, playbook, wait_for
from tests.unit.test_inventory_view import KEY, machine

pytestmark = pytest.mark.root
RUN = "run-of-this-test"


@dataclass(frozen=True)
class Bench:
    """A machine of the laboratory, and what the registry would know of it."""

    settings: Settings
    machine: Machine

    def play(self, text: str, **changes: object) -> tuple[PlaybookResult, list[Event]]:
        """Run `text` as a playbook on the machine; its result and its events."""
        self.settings.playbook.write_text(text, encoding="utf-8")
        ssh.pin_host_keys(self.settings, self.machine)
        inventory.refresh(self.settings, [self.machine])
        request = PlaybookRun(
            playbook=self.settings.playbook,
            limit=(NAME,),
            machine_ids=(self.machine.id,),
            flow_run_id=RUN,
        ).model_copy(update=changes)
        events: list[Event] = []
        result = run(self.settings, request, on_event=events.append)
        assert not processes.marked(processes.RUN_MARK, RUN)
        assert [] == list(private_parent(self.settings).iterdir())
        return result, events

    def inside(self, command: str) -> str:
        done = subprocess.run(
            laboratory.console_command(self.settings, NAME, ("sh", "-c", command)),
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        return done.stdout.strip()

    def with_settings(self, **changes: object) -> "Bench":
        return Bench(self.settings.model_copy(update=changes), self.machine)

    def with_machine(self, **changes: object) -> "Bench":
        return Bench(self.settings, self.machine.model_copy(update=changes))


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """One machine for all tests of this file."""
    if os.geteuid() != 0:
        pytest.skip("the laboratory needs root")
    if missing_packages():
        pytest.skip(f"Debian packages are missing: {' '.join(missing_packages())}")
    home = Path(tempfile.mkdtemp(prefix="muster-bench-"))
    settings = Settings(
        home=home,
        playbook=home / "site.yaml",
        ssh_proxies=(ssh_proxy_entry(Settings(home=home)),),
        connect_timeout=3,
    )
    try:
        key = ssh.ensure_operator_key(settings)
        public = key.with_name(f"{key.name}.pub").read_bytes()
        injected = InjectedFile("/root/.ssh/authorized_keys", public, 0o600)
        node = laboratory.boot(settings, NAME, inject=[injected])
        made = Bench(settings, machine(NAME, address=node.address))
        keys = made.inside("cat /etc/ssh/ssh_host_*_key.pub").splitlines()
        yield made.with_machine(ssh_host_keys=tuple(" ".join(k.split()[:2]) for k in keys))
    finally:
        teardown.cleanup_leftovers(settings)
        shutil.rmtree(home, ignore_errors=True)


def test_events_arrive_while_the_playbook_runs(bench: Bench) -> None:
    """Each result comes when its task is done, not at the end."""
    seen: list[tuple[str, float]] = []
    bench.settings.playbook.write_text(
        playbook("name: Wait\nansible.builtin.pause:\n  seconds: 3"), encoding="utf-8"
    )
    ssh.pin_host_keys(bench.settings, bench.machine)
    inventory.refresh(bench.settings, [bench.machine])
    request = PlaybookRun(playbook=bench.settings.playbook, limit=(NAME,), flow_run_id=RUN)
    result = run(
        bench.settings, request, on_event=lambda event: seen.append((event.kind, time.monotonic()))
    )
    assert End.SUCCESSFUL == result.end
    tasks = [at for kind, at in seen if kind == "playbook_on_task_start"]
    assert tasks[1] - tasks[0] > 2.5
    assert 4 == result.tasks
    assert 4 == result.hosts[NAME].ok


def test_the_machine_is_verified_as_the_playbook_left_it(bench: Bench) -> None:
    """Name, id and roles are read over SSH; without facts it is refused."""
    ssh.pin_host_keys(bench.settings, bench.machine)
    bench.inside("rm -f /etc/ansible/facts.d/muster.fact")
    with pytest.raises(VerificationFailed, match="has no facts"):
        ssh.verify(bench.settings, bench.machine)
    result, _ = bench.play(playbook())
    assert error_of(result, "site.yaml") is None
    seen = ssh.verify(bench.settings, bench.machine)
    assert (NAME, bench.machine.id, ("common",)) == (seen.hostname, seen.machine_id, seen.roles)
    bench.inside("hostname other")
    with pytest.raises(VerificationFailed, match="hostname 'other'"):
        ssh.verify(bench.settings, bench.machine)
    assert 0 < bench.play(playbook())[0].changed


def test_check_mode_changes_nothing(bench: Bench) -> None:
    """What would change is counted, and the machine stays as it is."""
    bench.inside("rm -f /etc/ansible/facts.d/muster.fact")
    result, _ = bench.play(playbook(), check=True)
    assert 1 == result.changed
    assert "no" == bench.inside("test -e /etc/ansible/facts.d/muster.fact && echo yes || echo no")


def test_tags_choose_tasks(bench: Bench) -> None:
    """Only tasks with the tag run."""
    tagged = "name: Tagged\nansible.builtin.debug:\n  msg: tagged\ntags: [only]"
    result, _ = bench.play(playbook(tagged), tags=("only",))
    assert 1 == result.hosts[NAME].ok


def test_changed_host_keys_are_no_outage(bench: Bench) -> None:
    """Another key than the pinned one is told as that, by Ansible and by the look alike."""
    other = bench.with_machine(ssh_host_keys=(KEY,))
    result, _ = other.play(playbook())
    assert isinstance(error_of(result, "site.yaml"), HostKeysChanged)
    with pytest.raises(HostKeysChanged, match="other SSH host keys"):
        ssh.verify(other.settings, other.machine)
    ssh.pin_host_keys(bench.settings, bench.machine)


def test_a_silent_address_is_unreachable(bench: Bench) -> None:
    """Nobody answers there: waiting may cure it."""
    nobody = bench.with_machine(address="10.213.0.2")
    result, _ = nobody.play(playbook())
    assert isinstance(error_of(result, "site.yaml"), Unreachable)
    with pytest.raises(Unreachable):
        ssh.verify(nobody.settings, nobody.machine)


def test_a_refused_key_is_told(bench: Bench, tmp_path: Path) -> None:
    """A key that the machine does not know is no matter of waiting."""
    values: dict[str, Any] = bench.settings.model_dump()
    values["ssh_key_path"] = tmp_path / "stranger"
    stranger = Bench(Settings(**values), bench.machine)
    ssh.ensure_operator_key(stranger.settings)
    result, _ = stranger.play(playbook())
    error = error_of(result, "site.yaml")
    assert isinstance(error, PlaybookFailed)
    assert "refuses the operator's key" in error.detail
    with pytest.raises(VerificationFailed, match="refuses the operator's key"):
        ssh.verify(stranger.settings, stranger.machine)


def test_a_held_package_database_is_told(bench: Bench) -> None:
    """apt's own words for the lock are recognised."""
    holder = (
        "import fcntl, time; f = open('/var/lib/dpkg/lock-frontend', 'w'); "
        "fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)"
    )
    command = laboratory.console_command(bench.settings, NAME, ("python3", "-c", holder))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holding:
        assert holding.stdout is not None
        assert "held" == holding.stdout.readline().strip()
        task = (
            "name: Remove what is not there\nansible.builtin.command:\n"
            "  cmd: apt-get -o DPkg::Lock::Timeout=1 -y remove base-files-none"
        )
        result, _ = bench.play(playbook(task.replace("base-files-none", "mawk")))
        bench.inside("pkill -f '[l]ock-frontend' || true")
        holding.kill()
    assert isinstance(error_of(result, "site.yaml"), PackagesLocked)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- hosts: machines\n  roles: [no_such_role]\n", "no_such_role"),
        ("- hosts: machines\n  tasks: [\n", "site.yaml"),
        ("- hosts: control_nodes\n  tasks: []\n", "matched none"),
        ("- hosts: localhost\n  tasks: []\n", "matched none"),
        ("[]", "site.yaml"),
        ("hello", "site.yaml"),
    ],
)
def test_a_playbook_that_does_nothing_is_a_failure(bench: Bench, text: str, words: str) -> None:
    """Unreadable, of an unknown role, or for other hosts: never a success."""
    result, _ = bench.play(text)
    error = error_of(result, "site.yaml")
    assert isinstance(error, PlaybookFailed)
    assert words in error.detail


def test_a_run_ends_at_its_deadline(bench: Bench) -> None:
    """What hangs is stopped after the time of the settings."""
    hurried = bench.with_settings(run_timeout=5.0)
    began = time.monotonic()
    result, _ = hurried.play(playbook("name: Hang\nansible.builtin.command:\n  cmd: sleep 99"))
    assert time.monotonic() - began < 20
    assert isinstance(error_of(result, "site.yaml"), DeadlineExceeded)


def test_much_and_odd_output_passes(bench: Bench) -> None:
    """A megabyte of output, control characters and emoji do no harm."""
    loud = (
        "name: Shout\nansible.builtin.command:\n"
        "  cmd: python3 -c \"print('x' * 1000000); print(chr(27), chr(0x1F600), chr(0x85))\"\n"
        "changed_when: false"
    )
    said = (
        "name: Say\nansible.builtin.debug:\n"
        '  msg: "\\x1b[31m\\U0001F600 {% raw %}{{ x }}{% endraw %}"'
    )
    result, events = bench.play(playbook(loud, said))
    assert error_of(result, "site.yaml") is None
    assert any("\U0001f600 {{ x }}" in event.text for event in events)


def test_secrets_come_as_a_vault_and_are_masked(bench: Bench) -> None:
    """The playbook has them; the events do not; nothing is left on the disk."""
    path = bench.settings.secrets_file
    path.touch(mode=0o600)
    path.write_text(f"site_secret: {CANARY}\nmultiline: |\n  line-one-{CANARY}\n  line-two\n")
    said = 'name: Say\nansible.builtin.debug:\n  msg: "{{ site_secret }} {{ multiline }}"'
    result, events = bench.play(playbook(said))
    path.unlink()
    assert error_of(result, "site.yaml") is None
    assert any("[redacted] [redacted]" in event.text for event in events)
    assert not any(CANARY in event.model_dump_json() for event in events)


ORPHAN = """
import sys
from pathlib import Path
from fleet.settings import Settings
from tasks.ansible import PlaybookRun, run
settings = Settings(home=Path(sys.argv[1]), playbook=Path(sys.argv[2]))
request = PlaybookRun(playbook=settings.playbook, limit=("node-1",), flow_run_id="orphaned-run")
run(settings, request, on_event=lambda event: print(event.kind, flush=True))
"""


def test_ansible_does_not_outlive_its_parent(bench: Bench) -> None:
    """kill -9 of the calling process: processes, connections and the folder go by themselves."""
    slow = "name: Wait\nansible.builtin.command:\n  cmd: sleep 99"
    bench.settings.playbook.write_text(playbook(slow), encoding="utf-8")
    ssh.pin_host_keys(bench.settings, bench.machine)
    inventory.refresh(bench.settings, [bench.machine])
    command = [sys.executable, "-c", ORPHAN, str(bench.settings.home), str(bench.settings.playbook)]
    parent = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    while parent.stdout.readline().strip() != "playbook_on_task_start":
        assert parent.poll() is None
    wait_for("ssh", lambda: orphans("ssh"), 20)
    parent.kill()
    parent.communicate(timeout=10)
    wait_for("the end of Ansible", lambda: not orphans(), 15)
    wait_for("the end of the folder", lambda: not list(private_parent(bench.settings).iterdir()), 5)


def orphans(name: str = "") -> list[psutil.Process]:
    """The living processes of the orphaned run."""
    found = processes.marked(processes.RUN_MARK, "orphaned-run")
    return [p for p in found if name in p.name() and p.status() != psutil.STATUS_ZOMBIE]


def test_a_signal_to_the_caller_ends_ansible(bench: Bench) -> None:
    """An exception in the caller, as a signal raises one, unwinds everything."""
    bench.settings.playbook.write_text(
        playbook("name: Wait\nansible.builtin.command:\n  cmd: sleep 99"), encoding="utf-8"
    )
    request = PlaybookRun(playbook=bench.settings.playbook, limit=(NAME,), flow_run_id=RUN)

    def stop(event: Event) -> None:
        if event.kind == "playbook_on_task_start":
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(bench.settings, request, on_event=stop)
    assert not processes.marked(processes.RUN_MARK, RUN)
    assert not list(private_parent(bench.settings).iterdir())


def test_folders_of_dead_runs_are_removed(bench: Bench) -> None:
    """A folder that no process holds goes when the next run begins."""
    left = private_parent(bench.settings) / "tmpdead"
    left.mkdir(parents=True)
    (left / "lock").touch()
    bench.play(playbook())
    assert not left.exists()


def test_a_home_with_a_long_path_works_and_leaves_nothing(bench: Bench, tmp_path: Path) -> None:
    """ssh's sockets get a short place, which goes with the run."""
    home = tmp_path / ("long" * 20)
    home.mkdir()
    values: dict[str, Any] = bench.settings.model_dump()
    values |= {"home": home, "ssh_key_path": bench.settings.ssh_key_file}
    settings = Settings(**values)
    settings.playbook.write_text(playbook(), encoding="utf-8")
    ssh.pin_host_keys(settings, bench.machine)
    inventory.refresh(settings, [bench.machine])
    request = PlaybookRun(playbook=settings.playbook, limit=(NAME,), flow_run_id=RUN)
    result = run(settings, request, on_event=lambda event: None)
    assert error_of(result, "site.yaml") is None
    assert not private_parent(settings).exists()
