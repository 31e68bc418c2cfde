"""The commands, started as people start them, on a registry of their own."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet import locks
from fleet.settings import CHECKOUT


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="muster-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def muster(home: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command on this home, from a folder that is not the checkout."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env=os.environ | {"MUSTER_HOME": str(home)} | variables,
        timeout=60,
    )


def from_json(result: subprocess.CompletedProcess[str]) -> object:
    assert 0 == result.returncode, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("listing", [("machine", "list"), ("job", "list"), ("todo",)])
def test_listings_are_json_arrays(home: Path, listing: tuple[str, ...]):
    """Every listing prints an array with --json, an empty one when there is nothing."""
    assert [] == from_json(muster(home, *listing, "--json"))


def test_an_added_machine_is_listed_shown_and_retired(home: Path):
    """A machine's way through the commands, its token told once and kept nowhere."""
    added = from_json(muster(home, "machine", "add", "node-3", "--json"))
    assert isinstance(added, dict)
    assert {"machine_id", "token", "command"} == set(added)
    assert added["token"] in added["command"]
    listed = from_json(muster(home, "machine", "list", "--json"))
    assert isinstance(listed, list)
    assert [("node-3", "approved")] == [(m["name"], m["state"]) for m in listed]
    shown = muster(home, "machine", "show", "node-3", "--json")
    assert added["token"] not in shown.stdout
    assert ["added"] == [event["kind"] for event in json.loads(shown.stdout)["timeline"]]
    assert 0 == muster(home, "machine", "retire", "node-3").returncode
    assert [] == from_json(muster(home, "machine", "list", "--json"))
    assert added["token"].encode() not in (home / "registry.db").read_bytes()


def test_a_new_token_is_another(home: Path):
    """`machine token` makes a second token for the same machine."""
    first = from_json(muster(home, "machine", "add", "node-3", "--json"))
    second = from_json(muster(home, "machine", "token", "node-3", "--json"))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    assert first["machine_id"] == second["machine_id"]
    assert first["token"] != second["token"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("machine", "show", "nobody"), ("no machine 'nobody'", "muster machine list")),
        (("machine", "add", "localhost"), ("reserved", "node-3")),
        (("machine", "add", "Büro"), ("RFC 1123", "node-3")),
        (("job", "show", "1234"), ("no job '1234'", "muster job list")),
        (("job", "list", "--state", "lost"), ("no state", "queued")),
    ],
)
def test_a_failure_says_what_to_do_next(
    home: Path, arguments: tuple[str, ...], words: tuple[str, ...]
):
    """The exit code is 1; what happened and the remedy stand on lines of their own."""
    result = muster(home, *arguments)
    assert 1 == result.returncode
    assert "Traceback" not in result.stderr
    what, remedy = result.stderr.strip().splitlines()
    assert words[0] in what
    assert words[1] in remedy


@pytest.mark.parametrize(
    ("name", "value"),
    [("MUSTER_API_PORT", "99999"), ("MUSTER_API_KEYS", "secret-key"), ("MUSTER_MAX_RUNS", "x")],
)
def test_a_bad_setting_is_named_without_its_value(home: Path, name: str, value: str):
    """The variable is named as people set it; a value may be a secret."""
    result = muster(home, "machine", "list", **{name: value})
    assert 1 == result.returncode
    assert f"✗ {name}: " in result.stderr
    assert value not in result.stderr


def test_a_damaged_settings_file_is_named(home: Path, tmp_path: Path):
    """A muster.toml that is no TOML is told with the place of the fault."""
    config = tmp_path / "damaged.toml"
    config.write_text("api_port = \n")
    result = muster(home, "machine", "list", MUSTER_CONFIG=str(config))
    assert 1 == result.returncode
    assert "muster.toml cannot be read" in result.stderr
    assert "line 1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_key_is_printed_with_its_digest(home: Path):
    """The digest that Muster keeps is that of the printed key."""
    made = from_json(muster(home, "key", "new", "--json"))
    assert isinstance(made, dict)
    assert hashlib.sha256(made["key"].encode()).hexdigest() == made["sha256"]
    assert "MUSTER_API_KEYS" in muster(home, "key", "new").stdout


def test_commands_find_where_up_listens(home: Path):
    """The ports that a running `up` got as options count for the other commands."""
    run = home / "run"
    run.mkdir(parents=True)
    record = {"pid": 1, "since": "2026-01-01T00:00:00Z", "api_host": "127.0.0.1", "api_port": 8765}
    record |= {"prefect_host": "127.0.0.1", "prefect_port": 4321}
    (run / "up.json").write_text(json.dumps(record))
    with locks.hold(run / "up.lock", what="home", timeout=0):
        during = from_json(muster(home, "machine", "add", "a-1", "--json"))
    after = from_json(muster(home, "machine", "add", "a-2", "--json"))
    assert isinstance(during, dict)
    assert isinstance(after, dict)
    assert ":8765/" in during["command"]
    assert ":8100/" in after["command"]


def test_the_launcher_is_quick_once_set_up(home: Path):
    """A listing through ./muster takes a second or two of a busy machine, not a set-up."""
    launcher = _launcher_of_this_venv()
    best = 100.0
    for _ in range(3):
        began = time.monotonic()
        result = subprocess.run(
            [launcher, "machine", "list", "--json"], capture_output=True, text=True, check=False,
            env=os.environ | {"MUSTER_HOME": str(home)}, cwd="/",
        )  # fmt: skip
        best = min(best, time.monotonic() - began)
        assert "[]" == result.stdout.strip(), result.stderr
    assert best < 3


def _launcher_of_this_venv() -> str:
    if not (CHECKOUT / ".venv" / "base.stamp").exists():
        pytest.skip("this checkout was not set up by ./muster")
    return str(CHECKOUT / "muster")


def test_the_launcher_names_what_is_missing(open_folder: Path):
    """Without Python an ordinary user is told the packages and the command."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to become an ordinary user")
    checkout = open_folder / "a checkout"
    checkout.mkdir()
    for name in ("muster", "pyproject.toml", "constraints.txt"):
        shutil.copy(CHECKOUT / name, checkout)
    tools = open_folder / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "readlink", "cat", "sha256sum", "flock", "id", "apt-get", "date"):
        found = shutil.which(name)
        assert found is not None
        (tools / name).symlink_to(found)
    shutil.chown(checkout, "nobody")
    result = subprocess.run(
        ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
         "env", "-i", f"PATH={tools}", "sh", str(checkout / "muster"), "machine", "list"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert 1 == result.returncode
    assert "python3 python3-venv" in result.stderr
    assert "Run as root: apt-get install python3 python3-venv" in result.stderr
