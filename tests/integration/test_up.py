"""`./muster up` without a laboratory: real processes, stopped, killed and started again."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from fleet.processes import HOME_MARK, end, marked
from fleet.settings import CHECKOUT, Settings

START_SECONDS = 180
STOP_SECONDS = 60


class Up:
    """A `muster up` of one test's own; its output so far is `text()`."""

    def __init__(self, settings: Settings, log: Path, *arguments: str) -> None:
        self.settings = settings
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "cli", "up", *arguments),
                    *("--home", str(settings.home)),
                    *("--api-port", str(settings.api_port)),
                    *("--prefect-port", str(settings.prefect_port)),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd="/",
            )

    def text(self) -> str:
        return self._log.read_text()

    def wait_for(self, words: str, *, timeout: float = START_SECONDS) -> None:
        self._until(lambda: words in self.text(), f"{words!r}", timeout)

    def wait_for_line(self, pattern: str, *, timeout: float = START_SECONDS) -> re.Match[str]:
        self._until(lambda: re.search(pattern, self.text()) is not None, pattern, timeout)
        found = re.search(pattern, self.text())
        assert found is not None
        return found

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def left(self) -> list[psutil.Process]:
        return marked(HOME_MARK, str(self.settings.home))

    def pid_of(self, program: str) -> int:
        """The newest process that was told of for this program."""
        told = re.findall(rf"^\S+ {program} +\w+ \(process (\d+)", self.text(), re.MULTILINE)
        return int(told[-1])

    def _until(self, condition: Callable[[], bool], what: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            over = time.monotonic() > deadline or self.process.poll() is not None
            if over and not condition():
                pytest.fail(f"waited for {what}, and `up` said:\n{self.text()}")
            time.sleep(0.1)


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Starts `up` on the test's home; whatever is left at the end is ended."""
    started: list[Up] = []

    def start_up(*arguments: str) -> Up:
        started.append(Up(settings, tmp_path / f"up-{len(started)}.log", *arguments))
        return started[-1]

    yield start_up
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
    end(marked(HOME_MARK, str(settings.home)), grace=5)


def test_up_serves_refuses_a_second_heals_and_leaves_nothing(
    start: Callable[..., Up], settings: Settings
):
    """The whole of an ordinary day: served, a second `up` refused, a death healed, Ctrl-C."""
    up = start()
    up.wait_for("Everything runs.")
    assert httpx.get(f"{settings.api_url}/healthz", trust_env=False).is_success
    assert httpx.get(f"{settings.prefect_url}/api/health", trust_env=False).is_success

    second = start()
    assert 1 == second.process.wait(STOP_SECONDS)
    assert f"process {up.process.pid} since" in second.text()
    assert f"API at {settings.api_url}" in second.text()

    up.wait_for_line(r"api +running")
    before = up.pid_of("api")
    os.kill(before, signal.SIGKILL)
    after = int(up.wait_for_line(r"api +restarted \(process (\d+)", timeout=30)[1])
    assert before != after

    assert 0 == up.end()
    assert [] == up.left()
    assert "stopped all processes" in up.text()


def test_killed_up_takes_its_processes_along_and_the_next_one_recovers(
    start: Callable[..., Up], settings: Settings
):
    """kill -9 of `up` ends its supervisor; kill -9 of both leaves what the next `up` ends."""
    up = start()
    up.wait_for("Everything runs.")
    supervisor = int((settings.home / "run" / "supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGSTOP)
    up.process.kill()
    up.process.wait()
    os.kill(supervisor, signal.SIGKILL)
    assert len(up.left()) >= 3

    again = start("--check")
    assert 0 == again.process.wait(START_SECONDS), again.text()
    assert re.search(r"Cleaned up what was left: \d+ processes", again.text())
    assert [] == again.left()


def test_a_killed_supervisor_ends_up_and_leaves_nothing(
    start: Callable[..., Up], settings: Settings
):
    """Without its supervisor `up` says so, ends what is left, and fails."""
    up = start()
    up.wait_for("Everything runs.")
    os.kill(int((settings.home / "run" / "supervisord.pid").read_text()), signal.SIGKILL)
    assert 1 == up.process.wait(STOP_SECONDS)
    assert "supervisor of Muster's processes does not answer" in up.text()
    assert [] == up.left()


def test_an_early_interrupt_leaves_nothing(start: Callable[..., Up]):
    """SIGTERM while everything is still starting stops what was started."""
    up = start()
    up.wait_for("• Prefect server")
    assert 0 == up.end(signal.SIGTERM)
    assert [] == up.left()


def test_a_second_interrupt_hurries(start: Callable[..., Up]):
    """Ctrl-C twice kills what still runs, and leaves nothing either."""
    up = start()
    up.wait_for("Everything runs.")
    up.process.send_signal(signal.SIGINT)
    up.wait_for("• stopped worker and runs", timeout=10)
    up.end()
    assert [] == up.left()


@pytest.mark.parametrize(
    ("name", "option"), [("api_port", "--api-port"), ("prefect_port", "--prefect-port")]
)
def test_a_port_in_use_is_named_with_its_holder_and_setting(
    start: Callable[..., Up], settings: Settings, name: str, option: str
):
    """Nothing is started; the message says who holds the port and how to choose another."""
    with socket.create_server(("127.0.0.1", getattr(settings, name))):
        up = start()
        assert 1 == up.process.wait(STOP_SECONDS)
    assert f"Port {getattr(settings, name)} on 127.0.0.1" in up.text()
    assert f"(process {os.getpid()})" in up.text()
    assert option in up.text()
    assert f"MUSTER_{name.upper()}" in up.text()
    assert [] == up.left()


def test_a_home_too_deep_for_a_socket_is_refused(tmp_path: Path):
    """A path that the supervisor's socket has no room for is said to be too long."""
    result = subprocess.run(
        [sys.executable, "-P", "-m", "cli", "up", "--home", str(tmp_path / ("long" * 30))],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert 1 == result.returncode
    assert "too long a path" in result.stderr


# In a mount namespace of its own: folders that are closed to others are hidden behind open ones
# that hold nothing but the interpreter and the checkout; then root becomes an ordinary user.
BECOME_NOBODY = """
set -eu
stash=$1 closed=$2 python=$3 checkout=$4
shift 4
for path in "$python" "$checkout"; do
    mkdir -p "$stash$path"
    mount --bind "$path" "$stash$path"
done
for folder in $closed; do mount -t tmpfs -o mode=755 tmpfs "$folder"; done
for path in "$python" "$checkout"; do
    mkdir -p "$path"
    mount --bind "$stash$path" "$path"
done
exec setpriv --reuid=nobody --regid=nogroup --clear-groups env HOME=/nonexistent "$@"
"""


@pytest.fixture
def nobody() -> Iterator[tuple[list[str], Path]]:
    """How to run this Python as an ordinary user, and a folder that is that user's."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become an ordinary user")
    folder = Path(tempfile.mkdtemp(prefix="muster-nobody-"))
    shutil.chown(folder, "nobody")
    base = Path(sys.base_prefix).resolve()
    ancestors = {*base.parents, *CHECKOUT.parents} - {Path("/")}
    closed = sorted(str(path) for path in ancestors if not path.stat().st_mode & 0o001)
    yield (
        [
            *("unshare", "--mount", "sh", "-c", BECOME_NOBODY, "sh", str(folder / "stash")),
            *(" ".join(closed), str(base), str(CHECKOUT)),
            *("MUSTER_CONFIG=/nonexistent/muster.toml", sys.executable, "-P"),
        ],
        folder,
    )
    end(marked(HOME_MARK, str(folder / "home")), grace=5)
    shutil.rmtree(folder)


def test_an_ordinary_user_has_a_control_plane(nobody: tuple[list[str], Path], settings: Settings):
    """`up` alone needs no root, also after root's Prefect was here; a laboratory says it does."""
    command, folder = nobody
    # What a Prefect of root's leaves in the folder for temporary files that all share.
    (Path(tempfile.gettempdir()) / "runner_storage").mkdir(mode=0o755, exist_ok=True)
    arguments = [
        *(*command, "-m", "cli", "up", "--home", str(folder / "home")),
        *("--api-port", str(settings.api_port), "--prefect-port", str(settings.prefect_port)),
    ]
    refused = subprocess.run(
        [*arguments, "--lab", "1"], capture_output=True, text=True, check=False, cwd="/"
    )
    assert 1 == refused.returncode
    assert "only root may do" in refused.stderr
    result = subprocess.run(
        [*arguments, "--check"], capture_output=True, text=True, check=False, cwd="/",
        timeout=START_SECONDS,
    )  # fmt: skip
    assert 0 == result.returncode, result.stdout + result.stderr
    assert [] == marked(HOME_MARK, str(folder / "home"))
