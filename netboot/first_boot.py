"""The first-boot side: what is put on a machine so that it calls home by itself.

The files go onto a machine in one of two ways: written into its image (`first_boot_files`), or
by the installer script that an operator pipes into a shell on it (`install_script`).
"""

import ipaddress
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from fleet.errors import SetupFailed
from fleet.settings import Settings

UNIT_NAME = "muster-first-boot.service"
SCRIPT_PATH = "/usr/local/lib/muster/muster_first_boot.py"
UNIT_PATH = f"/etc/systemd/system/{UNIT_NAME}"
CONFIG_PATH = "/etc/muster/first-boot.json"
TOKEN_PATH = "/etc/muster/token"  # noqa: S105 - where it lies, not what it is
AUTHORIZED_KEYS_PATH = "/root/.ssh/authorized_keys"
INSTALL_PATH = "/first-boot/install.sh"

_TEMPLATES = Path(__file__).resolve().parent / "templates"
_DELIMITER = "END_OF_MUSTER_FILE"
_KEY_TYPES = ("ssh-", "ecdsa-", "sk-")


@dataclass(frozen=True)
class RenderedFile:
    """A file for a machine: absolute path, content, and mode bits."""

    path: str
    content: bytes
    mode: int

    @property
    def text(self) -> str:
        return self.content.decode()


def first_boot_files(
    api_url: str, token: str, authorized_keys: Sequence[str]
) -> list[RenderedFile]:
    """All files that make a machine call home at `api_url` when it boots, root's keys included.

    The unit UNIT_NAME must be enabled besides. Raises SetupFailed for a key or URL that is none.
    """
    keys = "".join(f"{_one_key(key)}\n" for key in authorized_keys)
    return [
        *_public_files(api_url),
        RenderedFile(TOKEN_PATH, f"{token}\n".encode(), 0o600),
        RenderedFile(AUTHORIZED_KEYS_PATH, keys.encode(), 0o600),
    ]


def install_script(api_url: str, authorized_keys: Sequence[str]) -> str:
    """A POSIX shell script that installs and starts the first-boot unit.

    It holds no secret: the token comes from the environment of whoever runs it. Raises
    SetupFailed for a key or URL that is none.
    """
    files = _public_files(api_url)
    environment = Environment(  # noqa: S701 - a shell script: `quote` is its escaping
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = shlex.quote
    return environment.get_template("install.sh.j2").render(
        api_url=_checked_url(api_url),
        authorized_keys=[_one_key(key) for key in authorized_keys],
        delimiter=_DELIMITER,
        files=files,
        folders=sorted({str(PurePosixPath(file.path).parent) for file in files}),
        token_path=TOKEN_PATH,
        unit=UNIT_NAME,
    )


def install_command(api_url: str, token: str) -> str:
    """The line an operator runs as root on a machine, whichever downloader it has."""
    url = shlex.quote(f"{api_url}{INSTALL_PATH}")
    return f"(curl -fsS {url} || wget -qO- {url}) | MUSTER_TOKEN={shlex.quote(token)} sh"


def machines_url(settings: Settings) -> str:
    """The API's URL as machines reach it. Raises SetupFailed when no setting tells it."""
    url = _checked_url(settings.api_url)
    try:
        anywhere = ipaddress.ip_address(urlsplit(url).hostname or "").is_unspecified
    except ValueError:
        anywhere = False
    if anywhere:
        raise SetupFailed(
            f"The API listens on every address ({settings.api_host}), and no setting says by "
            "which one machines reach it.",
            remedy="Set MUSTER_PUBLIC_URL, for instance to "
            f"http://<this host's address>:{settings.api_port}.",
        )
    return url


def operator_keys(settings: Settings) -> list[str]:
    """The public keys that may log in as root on a machine. Raises SetupFailed without one."""
    path = settings.ssh_key_file.with_name(f"{settings.ssh_key_file.name}.pub")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupFailed(
            f"The operator's public key {path.name} cannot be read: {type(error).__name__}.",
            remedy="`./muster up` makes it; MUSTER_SSH_KEY_PATH names another private key.",
        ) from error
    return [_one_key(line) for line in lines if line.strip()]


def _public_files(api_url: str) -> list[RenderedFile]:
    """The files that hold no secret."""
    config = json.dumps({"api_url": _checked_url(api_url)}) + "\n"
    script = (_TEMPLATES / "muster_first_boot.py").read_bytes()
    unit = (_TEMPLATES / UNIT_NAME).read_bytes()
    return [
        RenderedFile(CONFIG_PATH, config.encode(), 0o644),
        RenderedFile(SCRIPT_PATH, script, 0o755),
        RenderedFile(UNIT_PATH, unit, 0o644),
    ]


def _checked_url(url: str) -> str:
    """`url` without a trailing slash, if it is an address and nothing else."""
    wanted = "Write http://<host>:<port> or https://<host>."
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SetupFailed(f"{url!r} is no URL: {error}.", remedy=wanted) from error
    plain = url.isascii() and url.isprintable() and not set(url) & set(" '\"`$\\<>#?@")
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        raise SetupFailed(f"{url!r} is no plain http or https URL.", remedy=wanted)
    return url.rstrip("/")


def _one_key(line: str) -> str:
    key = line.strip()
    words = key.split(" ")
    if len(words) < 2 or not words[0].startswith(_KEY_TYPES) or not key.isprintable():  # noqa: PLR2004
        raise SetupFailed(
            "The operator's public key is not one line of type, key and comment.",
            remedy="Make a key pair: ssh-keygen -t ed25519",
        )
    return key
