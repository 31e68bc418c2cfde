"""supervisord's configuration, and what `up` says of its programs."""

import configparser
import shlex
from pathlib import Path

import pytest

from cli.control_plane import environment, programs
from cli.session import changes
from cli.supervisor import Program, ProgramState, render_config, tail
from fleet.processes import HOME_MARK
from fleet.settings import Settings


def parse(text: str) -> configparser.ConfigParser:
    """Read a configuration as supervisord does: `%%` is a percent sign, ` ;` begins a comment."""
    parser = configparser.ConfigParser(inline_comment_prefixes=(";",))
    parser.read_string(text)
    return parser


@pytest.mark.parametrize("folder", ["/srv/home", "/srv/my home", "/srv/100% mine"])
def test_paths_survive_the_configuration(folder: str):
    """Blanks and percent signs in paths reach supervisord as they are."""
    home = Path(folder)
    program = Program("api", ("/opt/my python", "-m", "x%y"), 300)
    read = parse(render_config([program], run_dir=home / "run", logs_dir=home / "logs", root=False))
    assert f"{folder}/run/supervisor.sock" == read["unix_http_server"]["file"]
    assert f"{folder}/logs/api.log" == read["program:api"]["stdout_logfile"]
    assert ["/opt/my python", "-m", "x%y"] == shlex.split(read["program:api"]["command"])


def test_only_its_owner_reaches_the_supervisor():
    """The control socket is closed to all other users."""
    read = parse(render_config([], run_dir=Path("/r"), logs_dir=Path("/l"), root=True))
    assert "0600" == read["unix_http_server"]["chmod"]
    assert "root" == read["supervisord"]["user"]


def test_worker_starts_last_and_stops_first(settings: Settings):
    """The worker has the highest priority, and waits for the deployment of the flows."""
    by_name = {program.name: program for program in programs(settings, laboratory=True)}
    assert ["proxy", "prefect", "api", "worker"] == sorted(
        by_name, key=lambda name: by_name[name].priority
    )
    assert ["worker"] == [name for name, program in by_name.items() if not program.autostart]


def test_without_laboratory_there_is_no_proxy(settings: Settings):
    """The proxy belongs to the laboratory."""
    names = [program.name for program in programs(settings, laboratory=False)]
    assert ["prefect", "api", "worker"] == names


def test_secrets_travel_in_the_environment_alone(tmp_path: Path):
    """No secret stands in the configuration file, and each process gets what it needs."""
    settings = Settings(home=tmp_path, prefect_auth_string="admin:sesame")  # type: ignore[arg-type]
    text = render_config(
        programs(settings, laboratory=True), run_dir=tmp_path, logs_dir=tmp_path, root=True
    )
    assert "sesame" not in text
    made = environment(settings, {"PATH": "/usr/bin", "LANG": "C.UTF-8"})
    assert "admin:sesame" == made["MUSTER_PREFECT_AUTH_STRING"]
    assert "C.UTF-8" == made["LANG"]
    assert made["PATH"].endswith(":/usr/bin")


def test_every_process_bears_the_mark_of_its_home(settings: Settings):
    """What a crash leaves behind can be told from all other processes."""
    assert str(settings.home) == environment(settings, {})[HOME_MARK]


def state(pid: int, name: str = "RUNNING", started: int = 100, note: str = "") -> ProgramState:
    return ProgramState("api", name, pid, started, note)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (None, state(7), ["api      running (process 7, up 20 s)"]),
        (state(7), state(7), []),
        (state(7), state(9), ["api      restarted (process 9, up 20 s)"]),
        (state(7, "STARTING"), state(7), ["api      running (process 7, up 20 s)"]),
        (state(7), state(0, "BACKOFF", note="Exited"), ["api      backoff: Exited"]),
    ],
)
def test_what_changed_is_said_once(
    before: ProgramState | None, after: ProgramState, expected: list[str]
):
    """A program gets a line when its state or its process is another, else none."""
    seen = {} if before is None else {"api": before}
    assert expected == changes(seen, {"api": after}, now=120)


def test_tail_is_the_end_of_a_log(tmp_path: Path):
    """Empty lines do not count, and a log that is not there is empty."""
    log = tmp_path / "x.log"
    log.write_text("one\n\ntwo\nthree\n\n")
    assert "two\nthree" == tail(log, 2)
    assert "" == tail(tmp_path / "none.log", 2)
