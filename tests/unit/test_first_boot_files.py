"""The files that make a machine call home, rendered and compared whole."""

import json
import subprocess
from pathlib import Path

import pytest

from fleet.errors import SetupFailed
from fleet.settings import Settings
from netboot import first_boot
from netboot.first_boot import RenderedFile

URL = "http://10.213.0.1:8100"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s me@here"
TEMPLATES = Path(first_boot.__file__).parent / "templates"
GOLDEN = Path(__file__).parent / "golden" / "install.sh"


def test_first_boot_files_are_complete() -> None:
    """Configuration, script, unit, token and root's keys, each with its content and mode."""
    assert [
        RenderedFile(
            "/etc/muster/first-boot.json", b'{"api_url": "http://10.213.0.1:8100"}\n', 0o644
        ),
        RenderedFile(
            "/usr/local/lib/muster/muster_first_boot.py",
            (TEMPLATES / "muster_first_boot.py").read_bytes(),
            0o755,
        ),
        RenderedFile(
            "/etc/systemd/system/muster-first-boot.service",
            (TEMPLATES / "muster-first-boot.service").read_bytes(),
            0o644,
        ),
        RenderedFile("/etc/muster/token", b"secret-token\n", 0o600),
        RenderedFile("/root/.ssh/authorized_keys", f"{KEY}\n".encode(), 0o600),
    ] == first_boot.first_boot_files(URL, "secret-token", [KEY])


def test_unit_and_script_agree_on_their_paths() -> None:
    """The unit starts the script where it is put, and waits for the token that is put there."""
    unit = (TEMPLATES / first_boot.UNIT_NAME).read_text(encoding="utf-8")
    script = (TEMPLATES / "muster_first_boot.py").read_text(encoding="utf-8")
    assert f"ExecStart=/usr/bin/python3 {first_boot.SCRIPT_PATH}\n" in unit
    assert f"ConditionPathExists={first_boot.TOKEN_PATH}\n" in unit
    assert "Wants=network-online.target\nAfter=network-online.target" in unit
    assert f'UNIT = "{first_boot.UNIT_NAME}"' in script
    for path in (first_boot.TOKEN_PATH, first_boot.CONFIG_PATH):
        assert f'Path("{path}")' in script


def test_the_installer_is_the_golden_one() -> None:
    """The installer is, letter for letter, the kept one with script and unit put in."""
    golden = GOLDEN.read_text(encoding="utf-8")
    for name in ("muster_first_boot.py", "muster-first-boot.service"):
        golden = golden.replace(f"<{name}>\n", (TEMPLATES / name).read_text(encoding="utf-8"))
    assert golden == first_boot.install_script(URL, [KEY])


def test_the_installer_is_shell_and_holds_no_token() -> None:
    """A POSIX shell parses it, and no embedded file can end its own here-document."""
    script = first_boot.install_script(URL, [KEY])
    checked = subprocess.run(
        ["sh", "-n"], input=script, text=True, capture_output=True, check=False
    )
    assert (0, "") == (checked.returncode, checked.stderr)
    assert 2 * 3 == script.count("END_OF_MUSTER_FILE")


def test_hostile_comments_of_a_key_stay_quoted() -> None:
    """A key's comment is data in the shell, whatever it holds."""
    evil = f"{KEY} '$(touch /tmp/muster-owned)`id`"
    script = first_boot.install_script(URL, [evil])
    line = next(line for line in script.splitlines() if "grep -qxF" in line)
    quoted = line.strip().removeprefix("grep -qxF ").partition(" /root/.ssh")[0]
    echoed = subprocess.run(
        ["sh", "-c", f"printf %s {quoted}"], text=True, capture_output=True, check=True
    )
    assert evil == echoed.stdout


@pytest.mark.parametrize("key", ["", "ssh-ed25519", "x y", f"{KEY}\n{KEY}", f"command=x {KEY}"])
def test_what_is_no_public_key_is_refused(key: str) -> None:
    """Only one line of type and key goes into authorized_keys."""
    with pytest.raises(SetupFailed):
        first_boot.first_boot_files(URL, "t", [key])


@pytest.mark.parametrize(
    "url",
    ["", "10.0.0.1:8100", "ftp://x", "http://", "http://x'y", "http://x\ny", "http://x/$(id)",
     "http://u@x", "http://x?y", "http://x:port", "http://é"],
)  # fmt: skip
def test_what_is_no_plain_url_is_refused(url: str) -> None:
    """A URL goes into a shell script and a command line only if it is plain."""
    with pytest.raises(SetupFailed):
        first_boot.install_script(url, [KEY])


def test_the_command_runs_the_installer_with_the_token_in_the_environment() -> None:
    """One line, with curl or wget, and the token in no program's arguments."""
    assert (
        "(curl -fsS http://10.213.0.1:8100/first-boot/install.sh"
        " || wget -qO- http://10.213.0.1:8100/first-boot/install.sh)"
        " | MUSTER_TOKEN=abc-_1 sh"
    ) == first_boot.install_command(URL, "abc-_1")


def test_machines_reach_the_api_by_its_public_url(tmp_path: Path) -> None:
    """The URL is the public one, else host and port."""
    assert "http://127.0.0.1:8100" == first_boot.machines_url(Settings(home=tmp_path))
    public = Settings(home=tmp_path, api_host="0.0.0.0", public_url="https://muster.example/")
    assert "https://muster.example" == first_boot.machines_url(public)


@pytest.mark.parametrize("settings", [{"api_host": "0.0.0.0"}, {"public_url": "http://[::]:8100"}])
def test_an_address_for_all_is_no_address_to_call(tmp_path: Path, settings: dict) -> None:
    """Where the API listens everywhere, the error names the setting that is missing."""
    with pytest.raises(SetupFailed, match="MUSTER_PUBLIC_URL"):
        first_boot.machines_url(Settings(home=tmp_path, **settings))


def test_operator_keys_come_from_beside_the_private_key(tmp_path: Path) -> None:
    """The public key stands beside the private one; without it the error says how to get it."""
    settings = Settings(home=tmp_path)
    with pytest.raises(SetupFailed, match="muster up"):
        first_boot.operator_keys(settings)
    public = tmp_path / "keys" / "operator_ed25519.pub"
    public.parent.mkdir()
    public.write_text(f"{KEY}\n", encoding="utf-8")
    assert [KEY] == first_boot.operator_keys(settings)


def test_the_configuration_is_json() -> None:
    """The script reads its configuration as JSON."""
    config = first_boot.first_boot_files(URL, "t", [KEY])[0]
    assert {"api_url": URL} == json.loads(config.content)
