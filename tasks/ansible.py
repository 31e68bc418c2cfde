"""Ansible: run one playbook in a process of its own and tell what it does while it does it."""

import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from filelock import FileLock

from fleet import locks, processes
from fleet.models import Frozen
from fleet.redaction import Redactor
from fleet.settings import CHECKOUT, Settings
from tasks.ansible_child import Ended, Order
from tasks.ansible_events import Event
from tasks.ansible_results import End, PlaybookResult, result_of
from tasks.secrets import forms_of, read_secrets

_KEPT_VARIABLES = ("HOME", "USER", "LOGNAME", "TZ")
_POLL_SECONDS = 0.5
_ENDING_SECONDS = 5.0
_STDERR_LENGTH = 2000
_LOCK_SECONDS = 30
# ssh makes its sockets in a folder of it, and their paths end at 107 characters.
_LONGEST_PARENT = 65


class PlaybookRun(Frozen):
    """What to run. `limit` names hosts of the inventory, at least one; `machine_ids` and
    `flow_run_id` mark the processes, so that a crash's leftovers can be found.
    """

    playbook: Path
    limit: tuple[str, ...]
    tags: tuple[str, ...] = ()
    check: bool = False
    machine_ids: tuple[str, ...] = ()
    flow_run_id: str


def run(
    settings: Settings, request: PlaybookRun, *, on_event: Callable[[Event], None]
) -> PlaybookResult:
    """Run a playbook to its end, or until `settings.run_timeout` is over.

    `on_event` is called in this thread for each event, free of secrets. However this function is
    left, nothing of the run lives on and its private folder is gone. Raises SetupFailed (the
    secrets' file).
    """
    secrets = read_secrets(settings.secrets_file)
    began = time.monotonic()
    events: list[Event] = []
    with _private_dir(settings) as private_dir:
        order = Order(
            private_dir=private_dir,
            project_dir=CHECKOUT,
            playbook=request.playbook,
            inventory=(str(CHECKOUT / "inventory"),),
            limit=request.limit,
            tags=request.tags,
            check=request.check,
            secrets=secrets,
            run_mark=request.flow_run_id,
        )
        with _child(settings, request, order) as child:
            end = _follow(child, events, began + settings.run_timeout, on_event)
        if end is None:
            end = Ended(end=End.KILLED, status=None, note=_last_words(private_dir))
    note = Redactor(forms_of(secrets))(end.note)
    return result_of(events, end=end.end, duration=time.monotonic() - began, note=note)


def environment(
    settings: Settings, request: PlaybookRun, private_dir: Path, outer: dict[str, str]
) -> dict[str, str]:
    """The child's whole environment: none of ours but what Ansible needs, so no secret. Pure."""
    kept = {name: outer[name] for name in _KEPT_VARIABLES if name in outer}
    path = os.pathsep.join([str(Path(sys.executable).parent), outer.get("PATH", os.defpath)])
    return kept | {
        "PATH": path,
        "LANG": "C.UTF-8",
        "LC_ALL": "C.UTF-8",
        "MUSTER_HOME": str(settings.home),
        "ANSIBLE_CONFIG": str(CHECKOUT / "ansible.cfg"),
        "ANSIBLE_HOME": str(private_dir / "home"),
        "ANSIBLE_LOCAL_TEMP": str(private_dir / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(private_dir / "cp"),
        "ANSIBLE_TIMEOUT": str(settings.connect_timeout),
        "ANSIBLE_NOCOLOR": "1",
        # ansible-runner turns it off where it is not set.
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        processes.HOME_MARK: str(settings.home),
        processes.RUN_MARK: request.flow_run_id,
        processes.MACHINE_MARK: ",".join(request.machine_ids),
    }


def private_parent(settings: Settings) -> Path:
    """Where the private folders of runs are made: below the home unless its path is too long."""
    parent = settings.home / "runs"
    if len(str(parent)) <= _LONGEST_PARENT:
        return parent
    digest = hashlib.sha256(str(settings.home).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"muster-runs-{digest}"


def _remove(settings: Settings, path: Path) -> None:
    """Remove a private folder, and its parent if that stands among other programs' files."""
    with FileLock(settings.locks_dir / "runs.lock", timeout=_LOCK_SECONDS):
        shutil.rmtree(path, ignore_errors=True)
        if not path.is_relative_to(settings.home):
            with suppress(OSError):  # another run's folder is still there
                path.parent.rmdir()


@contextmanager
def _private_dir(settings: Settings) -> Iterator[Path]:
    """A folder for one run, mode 0700; folders whose run is dead are removed first."""
    parent = private_parent(settings)
    with ExitStack() as stack:
        settings.locks_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(settings.locks_dir / "runs.lock", timeout=_LOCK_SECONDS):
            parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            for old in parent.iterdir():
                if not locks.is_held(old / "lock"):
                    shutil.rmtree(old, ignore_errors=True)
            path = Path(tempfile.mkdtemp(dir=parent))
            stack.callback(_remove, settings, path)
            held = locks.hold(path / "lock", what=str(path), timeout=_LOCK_SECONDS)
            stack.enter_context(held)
        yield path


@contextmanager
def _child(
    settings: Settings, request: PlaybookRun, order: Order
) -> Iterator["subprocess.Popen[str]"]:
    with (order.private_dir / "stderr").open("w", encoding="utf-8") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "tasks.ansible_child"],
            cwd=CHECKOUT,
            env=environment(settings, request, order.private_dir, dict(os.environ)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            # A signal to the flow's process group is the flow's to handle.
            start_new_session=True,
        )
    try:
        orders = cast("IO[str]", child.stdin)
        orders.write(order.model_dump_json() + "\n")
        orders.flush()
        yield child
    finally:
        _end(child, request.flow_run_id, order.private_dir)


def _end(child: "subprocess.Popen[str]", flow_run_id: str, private_dir: Path) -> None:
    """End the child, Ansible, its workers and the ssh connections they keep open.

    A connection that is kept open writes its socket's path over its environment.
    """
    left = processes.marked(processes.RUN_MARK, flow_run_id)
    left += processes.with_argument(f"ssh: {private_dir}")
    processes.end(left, grace=_ENDING_SECONDS)
    child.kill()
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe is not None:
            pipe.close()


def _follow(
    child: "subprocess.Popen[str]",
    events: list[Event],
    deadline: float,
    on_event: Callable[[Event], None],
) -> Ended | None:
    """Take in the child's lines; how Ansible ended, or None if the child ended without a word."""
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(cast("IO[str]", child.stdout), lines), daemon=True).start()
    while time.monotonic() < deadline:
        try:
            line = lines.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            continue
        if line is None:
            return None
        said = json.loads(line)
        if "ended" in said:
            return Ended.model_validate(said["ended"])
        event = Event.model_validate(said)
        events.append(event)
        on_event(event)
    return Ended(end=End.TIMEOUT, status=None)


def _read(stream: IO[str], lines: "queue.SimpleQueue[str | None]") -> None:
    try:
        for line in stream:
            lines.put(line)
    except ValueError:
        pass  # closed by the main thread
    lines.put(None)


def _last_words(private_dir: Path) -> str:
    path = private_dir / "stderr"
    said = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return f"The process of Ansible ended unexpectedly. {said[-_STDERR_LENGTH:].strip()}".strip()
