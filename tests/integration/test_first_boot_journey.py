"""The first-boot script and the installer against a running API."""

import importlib.util
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fleet import enrolment, jobs, machines
from fleet.registry import Registry
from fleet.settings import Settings
from fleet.states import JobState, MachineState
from netboot import first_boot

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s"
SCRIPT = Path(first_boot.__file__).parent / "templates" / "muster_first_boot.py"
SYSTEMCTL = """\
#!/bin/sh
echo "$@" >> "$SYSTEMCTL_LOG"
"""


@pytest.fixture
def systemctl_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What would be asked of systemd, which does not run everywhere that tests do."""
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SYSTEMCTL_LOG", str(tmp_path / "systemctl.log"))
    return tmp_path / "systemctl.log"


@pytest.fixture
def script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, systemctl_log: Path
) -> Callable[[str, str], ModuleType]:
    """Makes the script as it runs on a machine, its files below tmp_path and its waits short."""
    keys = tmp_path / "ssh"
    keys.mkdir()
    (keys / "ssh_host_ed25519_key.pub").write_text(f"{HOST_KEY} root@node\n", encoding="utf-8")

    def make(api_url: str, token: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location("muster_first_boot_journey", SCRIPT)
        assert spec is not None
        assert spec.loader is not None
        module: Any = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        read_keys = module.host_keys
        module.host_keys = lambda: read_keys(keys)
        module.CONFIG, module.TOKEN = tmp_path / "first-boot.json", tmp_path / "token"
        module.FIRST_WAIT = module.POLL_EVERY = 0.05
        module.CONFIG.write_text(f'{{"api_url": "{api_url}"}}', encoding="utf-8")
        module.TOKEN.write_text(f"{token}\n", encoding="ascii")
        return module

    return make


def _until(what: str, condition: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.02)
    return found


def _run(module: ModuleType) -> tuple[threading.Thread, list[int]]:
    statuses: list[int] = []
    thread = threading.Thread(target=lambda: statuses.append(module.main()), daemon=True)
    thread.start()
    return thread, statuses


def _queued_job(registry: Registry) -> Any:
    with registry.read() as session:
        return next(iter(jobs.listing(session, state=JobState.QUEUED)), None)


def _finish(registry: Registry, outcome: JobState) -> None:
    """Do for the queued job what a flow would."""
    job = _until("the call home", lambda: _queued_job(registry))
    now = datetime.now(UTC)
    with registry.write() as session:
        jobs.started(session, job.id, "run-1", now=now)
        if outcome is JobState.SUCCEEDED:
            jobs.succeeded(session, job.id, now=now)
        else:
            jobs.ended(session, job.id, outcome, now=now, reason="the role failed")


def test_a_machine_calls_home_until_it_is_ready(sqlite_api, script, systemctl_log, capsys) -> None:
    """The script reports, watches its job, and on `ready` removes its token and its unit."""
    token = sqlite_api.add("node-3")["token"]
    module = script(sqlite_api.url, token)
    thread, statuses = _run(module)
    _finish(sqlite_api.registry, JobState.SUCCEEDED)
    thread.join(20)
    assert [0] == statuses
    assert not module.TOKEN.exists()
    assert f"disable --quiet {first_boot.UNIT_NAME}\n" == systemctl_log.read_text(encoding="utf-8")
    assert token not in capsys.readouterr().out
    with sqlite_api.registry.read() as session:
        machine = machines.get(session, "node-3")
    assert (HOST_KEY,) == machine.ssh_host_keys
    assert machine.hardware is not None
    assert machine.hardware["cores"] >= 1


def test_a_failed_job_is_watched_on(sqlite_api, script, systemctl_log) -> None:
    """After a failure the script waits for the operator's retry, and keeps token and unit."""
    module = script(sqlite_api.url, sqlite_api.add("node-3")["token"])
    thread, statuses = _run(module)
    _finish(sqlite_api.registry, JobState.FAILED)
    with sqlite_api.registry.read() as session:
        (job,) = jobs.listing(session)
        assert MachineState.FAILED == machines.get(session, "node-3").state
    assert thread.is_alive()
    assert module.TOKEN.exists()
    assert not systemctl_log.exists()
    with sqlite_api.registry.write() as session:
        jobs.started(session, job.id, "run-1", now=datetime.now(UTC))
        jobs.succeeded(session, job.id, now=datetime.now(UTC))
    thread.join(20)
    assert [0] == statuses


def test_the_script_waits_for_an_api_that_is_down(
    serve_api, make_registry, sqlite_url: str, settings: Settings, script
) -> None:
    """A machine that boots before its control node calls home as soon as that is up."""
    registry = make_registry(sqlite_url)
    with registry.write() as session:
        now = datetime.now(UTC)
        machine = machines.add(session, "node-3", now=now)
        token = enrolment.mint(session, machine, now=now, life=600)
    thread, statuses = _run(script(f"http://127.0.0.1:{settings.api_port}", token))
    serve_api(registry, settings)
    _finish(registry, JobState.SUCCEEDED)
    thread.join(20)
    assert [0] == statuses


def test_a_refusal_ends_with_its_remedy_and_without_the_token(
    sqlite_api, script, systemctl_log, capsys
) -> None:
    """A refused machine says why and what to do, keeps its unit, and exits with an error."""
    token = sqlite_api.add("node-3")["token"]
    sqlite_api.http.post("/api/v1/machines/node-3/token", headers=sqlite_api.as_operator)
    module = script(sqlite_api.url, token)
    assert 1 == module.main()
    said = capsys.readouterr().out
    assert "muster machine token node-3" in said
    assert token not in said
    assert module.TOKEN.exists()
    assert not systemctl_log.exists()


def test_a_spent_token_ends_the_script_well(sqlite_api, script, systemctl_log) -> None:
    """A machine that lost the word `ready` to a power cut gets it from the refusal."""
    token = sqlite_api.add("node-3")["token"]
    sqlite_api.call_home(token, sqlite_api.report("node-3"))
    _finish(sqlite_api.registry, JobState.SUCCEEDED)
    module = script(sqlite_api.url, token)
    assert 0 == module.main()
    assert not module.TOKEN.exists()


def test_the_token_follows_no_redirect(script) -> None:
    """A redirect ends the call: the token goes to no other server."""
    seen: list[str] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.path)
            self.send_response(307)
            self.send_header("Location", f"http://127.0.0.1:{port}/elsewhere")
            self.end_headers()

        do_GET = do_POST  # noqa: N815 - its name there

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            pass

    with HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        assert 1 == script(f"http://127.0.0.1:{port}", "secret").main()
        server.shutdown()
        thread.join(10)
    assert ["/api/v1/call-home"] == seen


IN_A_COPY_OF_ETC = """\
set -eu
mount --make-rprivate /
mount -t tmpfs muster-test /mnt
mkdir /mnt/upper /mnt/work /mnt/lib /mnt/root
mount -t overlay muster-etc -o lowerdir=/etc,upperdir=/mnt/upper,workdir=/mnt/work /etc
mount --bind /mnt/lib /usr/local/lib
mount --bind /mnt/root /root
mkdir -p /etc/ssh /root/.ssh
printf '%s\\n' "$HOST_KEY root@node" > /etc/ssh/ssh_host_ed25519_key.pub
printf 'ssh-ed25519 AAAA someone@else' > /root/.ssh/authorized_keys
chmod 600 /root/.ssh/authorized_keys
sh "$INSTALLER"
sh "$INSTALLER"
cat /root/.ssh/authorized_keys
echo ---
stat -c '%a %n' /etc/muster /etc/muster/* /usr/local/lib/muster/* \\
    /etc/systemd/system/muster-first-boot.service /root/.ssh/authorized_keys
echo ---
/usr/bin/python3 /usr/local/lib/muster/muster_first_boot.py
ls /etc/muster
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts in a namespace of its own")
def test_the_installer_makes_a_machine_that_becomes_ready(
    sqlite_api, tmp_path: Path, systemctl_log: Path
) -> None:
    """Run twice on a machine, the installer leaves each file once, and the script does its work."""
    token = sqlite_api.add("node-3")["token"]
    installer = tmp_path / "install.sh"
    installer.write_text(sqlite_api.http.get("/first-boot/install.sh").text, encoding="utf-8")
    environment = os.environ | {
        "HOST_KEY": HOST_KEY, "INSTALLER": str(installer), "MUSTER_TOKEN": token,
    }  # fmt: skip
    finisher = threading.Thread(
        target=_finish, args=(sqlite_api.registry, JobState.SUCCEEDED), daemon=True
    )
    finisher.start()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", IN_A_COPY_OF_ETC],
        env=environment, text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    finisher.join(20)
    assert 0 == done.returncode, done.stderr
    keys, modes, said = done.stdout.split("---\n")
    keys = keys.partition("ssh-ed25519 AAAA someone")[2]
    assert 1 == keys.count("operator@control")
    assert "@else\nssh-ed25519" in keys
    assert [
        "755 /etc/muster", "644 /etc/muster/first-boot.json", "600 /etc/muster/token",
        "755 /usr/local/lib/muster/muster_first_boot.py",
        "644 /etc/systemd/system/muster-first-boot.service", "600 /root/.ssh/authorized_keys",
    ] == modes.splitlines()  # fmt: skip
    assert "this machine is ready" in said
    assert said.endswith("first-boot.json\n")
    assert token not in done.stdout + done.stderr + systemctl_log.read_text(encoding="utf-8")
    assert [
        "daemon-reload", "enable --quiet muster-first-boot.service",
        "restart --no-block muster-first-boot.service",
    ] * 2 + ["disable --quiet muster-first-boot.service"] == (
        systemctl_log.read_text(encoding="utf-8").splitlines()
    )  # fmt: skip


@pytest.mark.parametrize(
    ("token", "words"),
    [("", "MUSTER_TOKEN is not set"), ("a b", "not a token"), ("$(id)", "not a token")],
)
def test_the_installer_refuses_what_is_no_token(
    sqlite_api, tmp_path: Path, systemctl_log: Path, token: str, words: str
) -> None:
    """Without a token of the right form the installer changes nothing and says why."""
    if os.geteuid() != 0:
        words = "run this as root"
    done = subprocess.run(
        ["sh"],
        input=sqlite_api.http.get("/first-boot/install.sh").text,
        env=os.environ | {"MUSTER_TOKEN": token},
        text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert (1, "") == (done.returncode, done.stdout)
    assert words in done.stderr
    assert not systemctl_log.exists()
