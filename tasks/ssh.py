"""SSH: pinned host keys, the options of every connection, and a look at a machine."""

import ipaddress
import json
import os
import re
import subprocess
from pathlib import Path

from filelock import FileLock
from pydantic import ValidationError

from fleet.errors import (
    HostKeysChanged,
    InvalidRequest,
    SetupFailed,
    Unreachable,
    VerificationFailed,
)
from fleet.models import Frozen, Machine
from fleet.settings import Settings

FACTS_PATH = "/etc/ansible/facts.d/muster.fact"
# Two constants and nothing of ours or the machine's: the remote shell has nothing to interpret.
_LOOK = f"cat /proc/sys/kernel/hostname {FACTS_PATH}"
_SSH_FAILED = 255
_SPARE_SECONDS = 20
_HOST_KEYS = re.compile(
    r"host key verification failed|remote host identification has changed|host key is known",
    re.IGNORECASE,
)
_REFUSED = re.compile(r"permission denied|too many authentication failures", re.IGNORECASE)


class Verification(Frozen):
    """What a machine says of itself after its configuration."""

    hostname: str
    machine_id: str
    roles: tuple[str, ...]


class Pinned(Frozen):
    """A machine's known_hosts file, and whether this pinning changed it."""

    path: Path
    changed: bool


class _Facts(Frozen):
    name: str
    machine_id: str = ""
    roles: tuple[str, ...] = ()


def ensure_operator_key(settings: Settings) -> Path:
    """The path of the private key that Muster logs in with, made (ed25519, 0600) if it is missing.

    Its public half stands beside it in `<path>.pub`. Raises SetupFailed.
    """
    path = settings.ssh_key_file
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with FileLock(f"{path}.lock", timeout=_SPARE_SECONDS):
        if not path.exists():
            _keygen("-q", "-t", "ed25519", "-N", "", "-C", "muster", "-f", str(path))
        public = path.with_name(f"{path.name}.pub")
        if not public.exists():
            public.write_text(_keygen("-y", "-P", "", "-f", str(path)), encoding="utf-8")
        path.chmod(0o600)
    return path


def known_hosts_path(settings: Settings, machine: Machine) -> Path:
    return settings.known_hosts_dir / machine.id


def pin_host_keys(settings: Settings, machine: Machine) -> Pinned:
    """Write the host keys that the machine called home with to its known_hosts file.

    They stand under the machine's id, so another address changes nothing. Raises InvalidRequest
    for a machine without keys.
    """
    if not machine.ssh_host_keys:
        raise InvalidRequest(
            f"{machine.name} has no SSH host keys in the registry.",
            remedy="It has not called home yet; see: muster machine show " + machine.name,
        )
    text = "".join(f"{machine.id} {key}\n" for key in machine.ssh_host_keys)
    path = known_hosts_path(settings, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return Pinned(path=path, changed=False)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
    return Pinned(path=path, changed=True)


def ssh_options(settings: Settings, machine: Machine) -> list[str]:
    """The `-o` options of every ssh connection to the machine. Pure."""
    options = {
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _quoted(known_hosts_path(settings, machine)),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": machine.id,
        "CheckHostIP": "no",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": str(settings.connect_timeout),
    }
    proxy = proxy_command(settings.ssh_proxies, machine.address or "")
    if proxy is not None:
        options["ProxyCommand"] = proxy
    return [part for name, value in options.items() for part in ("-o", f"{name}={value}")]


def proxy_command(proxies: tuple[str, ...], address: str) -> str | None:
    """The command that leads to `address`, from entries `<cidr>=<command>`; None for none. Pure.

    The first entry that holds the address counts. Raises SetupFailed for an entry that is none.
    """
    for entry in proxies:
        cidr, sign, command = entry.partition("=")
        try:
            network = ipaddress.ip_network(cidr.strip())
        except ValueError as error:
            raise SetupFailed(
                f"MUSTER_SSH_PROXIES: {cidr!r} is no network ({error}).",
                remedy="Write <cidr>=<command with %h and %p>, as 10.0.0.0/24=nc %h %p.",
            ) from None
        if not sign or not command.strip():
            raise SetupFailed(
                f"MUSTER_SSH_PROXIES: {entry!r} names no command.",
                remedy="Write <cidr>=<command with %h and %p>, as 10.0.0.0/24=nc %h %p.",
            )
        if address and ipaddress.ip_address(address) in network:
            return command.strip()
    return None


def verify(settings: Settings, machine: Machine) -> Verification:
    """Look at the machine over SSH: it must bear its name and hold the facts that the role left.

    Raises Unreachable (waiting can cure it), HostKeysChanged or VerificationFailed.
    """
    command = [
        "ssh", "-F", "/dev/null", *ssh_options(settings, machine), "-i",
        str(settings.ssh_key_file), "-l", settings.ssh_user, "-T",
        "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3",
        "--", machine.address or "-", _LOOK,
    ]  # fmt: skip
    try:
        answer = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False,
            timeout=settings.connect_timeout + _SPARE_SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise _unreachable(machine, "it took too long") from None
    said = answer.stderr.decode("utf-8", "replace").strip()
    if answer.returncode == _SSH_FAILED:
        raise _connection_error(machine, said)
    if answer.returncode != 0:
        raise VerificationFailed(
            f"{machine.name} has no facts at {FACTS_PATH}: {said[-300:]}",
            remedy="The playbook must end with the role that writes them (common).",
        )
    return judge(machine, answer.stdout.decode("utf-8", "replace"))


def judge(machine: Machine, output: str) -> Verification:
    """The verification that a look's output amounts to. Pure.

    Raises VerificationFailed: another name, another machine's id, or damaged facts.
    """
    hostname, _, facts_text = output.partition("\n")
    try:
        facts = _Facts.model_validate(json.loads(facts_text))
    except (ValueError, ValidationError):
        raise VerificationFailed(
            f"{machine.name}: the facts at {FACTS_PATH} are damaged.",
            remedy="Run the playbook again.",
        ) from None
    for what, actual in (("hostname", hostname.strip()), ("name in its facts", facts.name)):
        if actual != machine.name:
            raise VerificationFailed(
                f"{machine.name} has the {what} {actual[:80]!r}.",
                remedy="See that common_hostname is the machine's name in the registry.",
            )
    if facts.machine_id != machine.id:
        raise VerificationFailed(
            f"{machine.name} holds the facts of machine {facts.machine_id[:80]!r}.",
            remedy="Run the playbook again.",
        )
    return Verification(hostname=hostname.strip(), machine_id=facts.machine_id, roles=facts.roles)


def _connection_error(machine: Machine, said: str) -> Exception:
    last = " ".join(said.splitlines()[-3:])[-400:]
    if _HOST_KEYS.search(said):
        return HostKeysChanged(
            f"{machine.name} answers with other SSH host keys than it called home with: {last}",
            remedy="If it was reinstalled on purpose, enrol it afresh with a new token: "
            f"muster machine token {machine.name}. If not, another machine has its address.",
        )
    if _REFUSED.search(said):
        return VerificationFailed(
            f"{machine.name} refuses the operator's key: {last}",
            remedy="Put the public key of Muster into its authorized_keys.",
        )
    return _unreachable(machine, last)


def _unreachable(machine: Machine, why: str) -> Unreachable:
    return Unreachable(
        f"{machine.name} did not answer over SSH at {machine.address}: {why}",
        remedy="See that it is powered on and on the network, then retry the run.",
    )


def _quoted(path: Path) -> str:
    """A path as ssh's configuration takes it: `%` doubled, and in quotes for the sake of blanks."""
    return '"' + str(path).replace("%", "%%").replace('"', '\\"') + '"'


def _keygen(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            check=True,
        )  # fmt: skip
    except FileNotFoundError:
        raise SetupFailed(
            "There is no ssh-keygen.", remedy="Install it: apt install openssh-client"
        ) from None
    except subprocess.CalledProcessError as error:
        raise SetupFailed(
            f"ssh-keygen failed: {error.stderr.strip()[-300:]}",
            remedy="The operator's key must be an OpenSSH key without a passphrase.",
        ) from None
    return done.stdout
