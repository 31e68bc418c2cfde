#!/usr/bin/python3
"""Tell Muster that this machine is there, and wait until it has been configured.

Runs as root from muster-first-boot.service, with Debian's Python (3.9 or later) and nothing else.
The machine's token never reaches a log, a command line or another server than the one in
/etc/muster/first-boot.json. Exit status 0 means that the server said `ready`; with any other,
systemd starts this again later.
"""

# Python 3.9 reads the annotations below only because they are not evaluated.
from __future__ import annotations

import contextlib
import email.utils
import http.client
import ipaddress
import json
import os
import platform
import random
import re
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

CONFIG = Path("/etc/muster/first-boot.json")
TOKEN = Path("/etc/muster/token")
UNIT = "muster-first-boot.service"
CALL_HOME = "/api/v1/call-home"

FIRST_WAIT = 2.0
LONGEST_WAIT = 300.0
LONGEST_RETRY_AFTER = 3600.0
POLL_EVERY = 5.0
# Then the process ends and systemd starts it afresh: the same boot gets the same job.
POLL_SECONDS = 6 * 3600.0
REQUEST_SECONDS = 30.0
LONGEST_ANSWER = 1 << 20

EXIT_READY = 0
EXIT_REFUSED = 1
EXIT_NOT_READY_YET = 2
EXIT_NO_CONFIG = 3

OK, ACCEPTED, FORBIDDEN, NOT_FOUND = 200, 202, 403, 404
TIMEOUT, TOO_MANY, SERVER_ERROR = 408, 429, 500

V2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
V3 = {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
V4 = {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
ROUTE_FIELDS = 8
NO_DISKS = ("loop", "ram", "zram", "sr", "fd", "dm-", "md", "nbd")


@dataclass(frozen=True)
class Config:
    """Where Muster is. `ca_file` (optional) holds the authority of an HTTPS certificate."""

    api_url: str
    ca_file: str | None = None


@dataclass(frozen=True)
class Answer:
    """What the server said; status 0 when it did not answer at all."""

    status: int
    body: dict
    retry_after: str | None = None


@dataclass(frozen=True)
class Step:
    """What to do next: `poll`, `wait`, `call` (again), `stop` or `done`, and a line for the log."""

    action: str
    message: str = ""


# --- decisions -----------------------------------------------------------------------------


def next_step(status: int, body: dict) -> Step:
    """What follows a call home that was answered so."""
    if status == ACCEPTED and isinstance(body.get("status_url"), str):
        return Step("poll", "the call home was accepted")
    return _step_after_error(status, body)


def next_poll_step(status: int, body: dict) -> Step:
    """What follows a look at the job that was answered so."""
    state = body.get("machine_state")
    if status == OK and state == "ready":
        return Step("done", "this machine is ready")
    if status == OK:
        return Step("poll", f"machine {_word(state)}, job {_word(body.get('state'))}")
    if status == NOT_FOUND:
        return Step("call", "the job is gone")
    return _step_after_error(status, body)


def _step_after_error(status: int, body: dict) -> Step:
    if status == FORBIDDEN and body.get("machine_state") == "ready":
        return Step("done", "this machine is ready already")
    if status == 0 or status >= SERVER_ERROR or status in (TIMEOUT, TOO_MANY):
        return Step("wait", problem_text(status, body))
    return Step("stop", problem_text(status, body))


def problem_text(status: int, body: dict) -> str:
    """A problem document in one line."""
    if status == 0:
        return f"no answer: {_line(body.get('detail'))}"
    words = [_line(body.get(key)) for key in ("title", "detail", "remedy")]
    return f"the server answered {status}: {' '.join(word for word in words if word)}"


def backoff(attempt: int, chance: float) -> float:
    """Seconds before try number `attempt` (1 is the second try); `chance` is 0 to 1.

    The wait doubles up to a limit, and half of it is left to chance: machines that lost their
    power together do not come back in step.
    """
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(attempt - 1, 16))
    return longest / 2 + chance * longest / 2


def retry_after(header: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date; 0 without one."""
    if not header:
        return 0.0
    if header.strip().isdigit():
        seconds = float(header.strip()[:9])
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(header).timestamp() - now
        except (TypeError, ValueError, IndexError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def same_origin(api_url: str, status_url: str) -> str | None:
    """The status URL in full, or None when it leads to another server than the API's."""
    api = urllib.parse.urlsplit(api_url)
    url = urllib.parse.urljoin(api_url, status_url)
    found = urllib.parse.urlsplit(url)
    try:
        same = (api.scheme, api.hostname, api.port) == (found.scheme, found.hostname, found.port)
    except ValueError:
        return None
    return url if same and found.username is None else None


def x86_64_level(flags: set) -> int | None:
    """The x86-64 level (1 to 4) that a CPU with these /proc/cpuinfo flags has; None without any."""
    if "lm" not in flags:
        return None
    level = 1
    for needed in (V2, V3, V4):
        if not needed <= flags:
            break
        level += 1
    return level


def route_interface(table: str, address: str) -> str | None:
    """The interface by which /proc/net/route would reach an IPv4 address."""
    try:
        wanted = int(ipaddress.IPv4Address(address))
    except ValueError:
        return None
    best: tuple[int, int, str] | None = None
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < ROUTE_FIELDS or not int(fields[3], 16) & 1:  # RTF_UP
            continue
        network, mask = (socket.ntohl(int(fields[i], 16)) for i in (1, 7))
        if wanted & mask == network:
            rank = (mask, -int(fields[6]), fields[0])
            best = rank if best is None or rank[:2] > best[:2] else best
    return best[2] if best else None


def _word(value: object) -> str:
    return re.sub(r"[^a-z-]", "", str(value))[:20]


def _line(value: object) -> str:
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else " " for c in value)[:500]


# --- what this machine is ------------------------------------------------------------------


def report(api_url: str) -> dict:
    """The body of the call home."""
    address, interface = own_address(api_url)
    body = {
        "hostname": hostname_claim(socket.gethostname()),
        "boot_id": _read("/proc/sys/kernel/random/boot_id"),
        "ssh_host_keys": host_keys(),
        "hardware": hardware(),
    }
    mac = mac_of(interface) if interface else None
    optional = {"address": address, "mac": mac}
    return {**body, **{name: value for name, value in optional.items() if value}}


def host_keys(folder: Path = Path("/etc/ssh")) -> list[str]:
    """The SSH host public keys as `type base64`, without their comments."""
    keys = [_read(path).split()[:2] for path in sorted(folder.glob("ssh_host_*_key.pub"))]
    return [" ".join(key) for key in keys if len(key) == 2]  # noqa: PLR2004


def own_address(api_url: str) -> tuple[str | None, str | None]:
    """The address by which this machine reaches the API, and its interface."""
    parts = urllib.parse.urlsplit(api_url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, target = found[0]
        # Nothing is sent: connecting a datagram socket only asks the kernel for a route.
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(target)
            address = probe.getsockname()[0].partition("%")[0]
    except OSError:
        return None, None
    if family == socket.AF_INET:
        return address, route_interface(_read("/proc/net/route"), str(target[0]))
    return address, _interface_of_ipv6(address)


def _interface_of_ipv6(address: str) -> str | None:
    wanted = f"{int(ipaddress.IPv6Address(address)):032x}"
    for line in _read("/proc/net/if_inet6").splitlines():
        fields = line.split()
        if fields and fields[0] == wanted:
            return fields[-1]
    return None


def mac_of(interface: str) -> str | None:
    """The interface's MAC address; None for one without, such as a tunnel or the loopback."""
    mac = _read(f"/sys/class/net/{interface}/address")
    return mac if MAC.fullmatch(mac) and mac != "00:00:00:00:00:00" else None


def hostname_claim(name: str) -> str:
    """This machine's own name as a hostname the server takes; Muster gives it its real one."""
    label = re.sub(r"[^a-z0-9-]+", "-", name.partition(".")[0].lower())[:63].strip("-")
    return "unnamed" if label in ("", "localhost") or label.isdigit() else label


def hardware() -> dict:
    """CPU, memory, disks and network cards, as far as the kernel tells."""
    cpu = cpu_facts(_read("/proc/cpuinfo"))
    return {
        **cpu,
        "architecture": platform.machine(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": memory_bytes(_read("/proc/meminfo")),
        "firmware": "uefi" if Path("/sys/firmware/efi").exists() else "bios",
        "product": _read("/sys/class/dmi/id/product_name") or None,
        "disks": disks(Path("/sys/block")),
        "nics": nics(Path("/sys/class/net")),
    }


def cpu_facts(cpuinfo: str) -> dict:
    """Model and x86-64 level from /proc/cpuinfo."""
    fields = {}
    for line in cpuinfo.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    flags = set(fields.get("flags", "").split())
    return {"cpu_model": fields.get("model name"), "x86_64_level": x86_64_level(flags)}


def memory_bytes(meminfo: str) -> int | None:
    """The memory that the kernel manages, from /proc/meminfo."""
    found = re.search(r"^MemTotal:\s+(\d+) kB$", meminfo, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def disks(folder: Path) -> list[dict]:
    """The disks below /sys/block: what could be installed on."""
    names = sorted(path.name for path in _entries(folder) if not path.name.startswith(NO_DISKS))
    return [disk for disk in (_disk(folder / name) for name in names) if disk["size_bytes"]]


def _disk(path: Path) -> dict:
    sectors = _read(path / "size")  # in units of 512 bytes, whatever the disk's own
    serial = _read(path / "serial") or _read(path / "device/serial") or _udev_serial(path)
    return {
        "name": path.name,
        "size_bytes": int(sectors) * 512 if sectors.isdigit() else 0,
        "serial": serial or None,
        "model": _read(path / "device/model") or None,
        "rotational": _read(path / "queue/rotational") == "1",
        "removable": _read(path / "removable") == "1",
    }


def _udev_serial(path: Path) -> str:
    number = _read(path / "dev")
    properties = _read(f"/run/udev/data/b{number}") if number else ""
    found = re.search(r"^E:ID_SERIAL_SHORT=(.+)$", properties, re.MULTILINE)
    return found[1] if found else ""


def nics(folder: Path) -> list[dict]:
    """The network interfaces below /sys/class/net that have an address of their own."""
    found = []
    for path in sorted(_entries(folder)):
        mac = _read(path / "address")
        if MAC.fullmatch(mac) and mac != "00:00:00:00:00:00":
            speed = _read(path / "speed")
            driver = path / "device/driver"
            found.append({
                "name": path.name,
                "mac": mac,
                "speed_mbit": int(speed) if speed.isdigit() else None,
                "driver": driver.resolve().name if driver.exists() else None,
            })  # fmt: skip
    return found


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _read(path: str | Path) -> str:
    """A small file's text without surrounding white space; empty when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0\n\t ")
    except OSError:
        return ""


# --- talking to the server -----------------------------------------------------------------


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to wherever the answer says."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # noqa: ARG002
        return None


class Server:
    """The API, asked under this machine's token."""

    def __init__(self, config: Config, token: str) -> None:
        self._config = config
        self._token = token
        handlers: list = [_NoRedirect(), urllib.request.ProxyHandler({})]
        if config.ca_file:
            context = ssl.create_default_context(cafile=config.ca_file)
            handlers.append(urllib.request.HTTPSHandler(context=context))
        self._opener = urllib.request.build_opener(*handlers)

    def call_home(self, body: dict) -> Answer:
        """Say that this machine is there."""
        return self._ask(self._config.api_url + CALL_HOME, json.dumps(body).encode())

    def look(self, status_url: str) -> Answer:
        """Look at the job."""
        return self._ask(status_url, None)

    def _ask(self, url: str, data: bytes | None) -> Answer:
        headers = {"Authorization": "Bearer " + self._token, "Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(url, data, headers)  # noqa: S310 - checked by load_config
        try:
            with self._opener.open(request, timeout=REQUEST_SECONDS) as response:
                return Answer(response.status, _parse(response.read(LONGEST_ANSWER)))
        except urllib.error.HTTPError as error:
            with error:
                body = _parse(error.read(LONGEST_ANSWER))
                return Answer(error.code, body, error.headers.get("Retry-After"))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            return Answer(0, {"detail": f"{type(error).__name__}: {reason}"})


def _parse(data: bytes) -> dict:
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


# --- the journey ---------------------------------------------------------------------------


def load_config(path: Path) -> Config:
    """The configuration. Raises ValueError (also for JSON) or OSError."""
    found = json.loads(path.read_text(encoding="utf-8"))
    url = str(found["api_url"]).rstrip("/")
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError("api_url is not an http or https address")
    return Config(url, found.get("ca_file"))


def enrol(server: Server, api_url: str) -> int:
    """Call home, wait until this machine is ready, and return the exit status."""
    deadline = time.monotonic() + POLL_SECONDS
    say = Journal()
    tries = 0
    status_url: str | None = None
    while time.monotonic() < deadline:
        if status_url is None:
            answer = server.call_home(report(api_url))
            step = next_step(answer.status, answer.body)
        else:
            answer = server.look(status_url)
            step = next_poll_step(answer.status, answer.body)
        say(step.message)
        if step.action == "done":
            return EXIT_READY
        if step.action == "stop":
            return EXIT_REFUSED
        if step.action == "wait":
            tries += 1
            asked = retry_after(answer.retry_after, time.time())
            _sleep(max(backoff(tries, random.random()), asked))  # noqa: S311 - jitter
            continue
        tries = 0
        if step.action == "call":
            status_url = None
        elif status_url is None:
            status_url = same_origin(api_url, answer.body["status_url"])
            if status_url is None:
                say("the server's status_url leads elsewhere; not followed")
                return EXIT_REFUSED
            continue
        _sleep(POLL_EVERY)
    say(f"not ready after {POLL_SECONDS:.0f} s")
    return EXIT_NOT_READY_YET


def disable() -> None:
    """Leave nothing behind that would start this again. Without a token the unit does not start."""
    with contextlib.suppress(FileNotFoundError):
        TOKEN.unlink()
    subprocess.run(["systemctl", "disable", "--quiet", UNIT], check=False, timeout=60)


class Journal:
    """Lines for systemd's journal; a line that says the same again is left out."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, message: str) -> None:
        if message and message != self._last:
            print(message, flush=True)  # noqa: T201 - standard output is the journal
        self._last = message


def _sleep(seconds: float) -> None:
    time.sleep(seconds)


def main() -> int:
    """Enrol this machine; the result is the exit status."""
    try:
        config = load_config(CONFIG)
        token = TOKEN.read_text(encoding="ascii").strip()
    except (OSError, ValueError, KeyError) as error:
        Journal()(f"cannot read {CONFIG} and {TOKEN}: {type(error).__name__}")
        return EXIT_NO_CONFIG
    status = enrol(Server(config, token), config.api_url)
    if status == EXIT_READY:
        disable()
    return status


if __name__ == "__main__":
    sys.exit(main())
