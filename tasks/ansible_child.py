"""The process of one playbook run: `python -m tasks.ansible_child`, started by tasks.ansible.

It reads one JSON line (`Order`) from its standard input, runs ansible-runner and writes one JSON
line per event to its standard output; the last one says how Ansible ended. Its input stays open
as long as its parent lives: at its end, Ansible is ended and the private folder removed.
"""

import json
import os
import queue
import shutil
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pydantic import Field

from fleet import processes
from fleet.models import Frozen
from fleet.redaction import Redactor
from tasks.ansible_events import EventReader
from tasks.ansible_results import End
from tasks.secrets import forms_of

_GRACE_SECONDS = 3.0
_POLL_SECONDS = 2
_ORPHANED = 3
# Ansible's own default, under which it looks for the password.
_VAULT_IDENTITY = "default"


class Order(Frozen):
    """What to run. `private_dir` is this run's own; `secrets` reach Ansible as a vault file."""

    private_dir: Path
    project_dir: Path
    playbook: Path
    inventory: tuple[str, ...]
    limit: tuple[str, ...]
    tags: tuple[str, ...] = ()
    check: bool = False
    secrets: dict[str, Any] = Field(default_factory=dict)
    run_mark: str


class Ended(Frozen):
    """The last line: how Ansible ended, and its exit status if it had one."""

    end: End
    status: int | None
    note: str = ""


def main() -> NoReturn:
    """Run the order on standard input; exits with 0 if its end could be told."""
    order = Order.model_validate_json(sys.stdin.readline())
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    # What ansible-runner or a plugin prints must not mix with the events.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orphaned = threading.Event()
    lifeline = threading.Thread(target=_end_with_parent, args=(order, orphaned), daemon=True)
    lifeline.start()
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    writer = threading.Thread(target=_write, args=(lines, output), daemon=True)
    writer.start()
    ended = _run(order, lines)
    lines.put(json.dumps({"ended": ended.model_dump(mode="json")}))
    lines.put(None)
    writer.join()
    if orphaned.is_set():
        lifeline.join()
    sys.stderr.flush()
    # Nothing is left to do, and the thread that waits for the parent cannot be joined.
    os._exit(0)


def _run(order: Order, lines: "queue.SimpleQueue[str | None]") -> Ended:
    import ansible_runner  # noqa: PLC0415 - its import is slow and only this process needs it

    vault = _write_vault(order)
    reader = EventReader(Redactor(forms_of(order.secrets)))

    def on_event(event: dict[str, Any]) -> bool:
        if event.get("event") == "playbook_on_start":
            # Ansible has read them by now.
            for path in vault:
                path.unlink(missing_ok=True)
        told = reader.read(event)
        if told is not None:
            lines.put(told.model_dump_json(exclude_defaults=True))
        return False

    limit = order.private_dir / "limit"
    limit.write_text("\n".join(order.limit) + "\n", encoding="utf-8")
    runner = ansible_runner.run(
        private_data_dir=str(order.private_dir),
        project_dir=str(order.project_dir),
        playbook=str(order.playbook),
        inventory=list(order.inventory),
        limit=f"@{limit}",
        tags=",".join(order.tags) or None,
        cmdline=_arguments(order, vault),
        event_handler=on_event,
        quiet=True,
        settings={"pexpect_timeout": _POLL_SECONDS},
    )
    return _ended(runner.status, runner.rc)


def _ended(status: str, code: int | None) -> Ended:
    if status == "successful":
        return Ended(end=End.SUCCESSFUL, status=code)
    if code is None or code < 0 or status == "canceled":
        return Ended(end=End.KILLED, status=code, note="ansible-playbook was killed.")
    return Ended(end=End.FAILED, status=code, note=f"ansible-playbook ended with status {code}.")


def _arguments(order: Order, vault: list[Path]) -> str | None:
    arguments = ["--check"] if order.check else []
    if vault:
        secrets, password = vault
        arguments += ["--vault-password-file", str(password), "-e", f"@{secrets}"]
    return " ".join(arguments) or None


def _write_vault(order: Order) -> list[Path]:
    """Write the secrets encrypted under a one-time password; the paths of both files, or none."""
    if not order.secrets:
        return []
    import secrets  # noqa: PLC0415

    import yaml  # noqa: PLC0415
    from ansible.parsing.vault import VaultLib, VaultSecret  # noqa: PLC0415

    one_time = secrets.token_urlsafe(32)
    library = VaultLib([(_VAULT_IDENTITY, VaultSecret(one_time.encode()))])
    files = {
        "secrets.yaml": library.encrypt(yaml.safe_dump(order.secrets)),
        "vault-password": one_time.encode(),
    }
    paths = []
    for name, content in files.items():
        path = order.private_dir / name
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        paths.append(path)
    return paths


def _write(lines: "queue.SimpleQueue[str | None]", output: TextIO) -> None:
    """Write what the event handler queues, so that a slow reader never holds up Ansible."""
    try:
        while (line := lines.get()) is not None:
            output.write(line + "\n")
            output.flush()
    except BrokenPipeError:
        return


def _end_with_parent(order: Order, orphaned: threading.Event) -> None:
    """Wait for the parent's end; then leave nothing of this run behind."""
    sys.stdin.read()
    orphaned.set()
    processes.end(processes.marked(processes.RUN_MARK, order.run_mark), grace=_GRACE_SECONDS)
    shutil.rmtree(order.private_dir, ignore_errors=True)
    os._exit(_ORPHANED)


if __name__ == "__main__":
    main()
