"""The decisions of the script that a machine runs on its first boots."""

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SCRIPT = Path(__file__).parents[2] / "netboot" / "templates" / "muster_first_boot.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("muster_first_boot", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = _load()

BASE = {"lm"}
LEVEL_2 = BASE | {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
LEVEL_3 = LEVEL_2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
LEVEL_4 = LEVEL_3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}


def test_the_script_is_python_3_9_and_stdlib_only() -> None:
    """It parses as Python 3.9 and imports nothing that Debian's Python lacks."""
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 9))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert set() == imported - sys.stdlib_module_names


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (202, {"status_url": "/api/v1/jobs/1"}, "poll"),
        (202, {}, "stop"),
        (202, {"status_url": 7}, "stop"),
        (403, {"machine_state": "ready"}, "done"),
        (403, {"detail": "expired"}, "stop"),
        (401, {}, "stop"),
        (404, {}, "stop"),
        (409, {}, "stop"),
        (413, {}, "stop"),
        (422, {}, "stop"),
        (301, {}, "stop"),
        (409, {"machine_state": "ready"}, "stop"),
        (408, {}, "wait"),
        (429, {}, "wait"),
        (500, {}, "wait"),
        (503, {}, "wait"),
        (0, {"detail": "refused"}, "wait"),
    ],
)
def test_what_follows_a_call_home(status: int, body: dict, action: str) -> None:
    """Accepted calls are watched, what waiting cures is retried, and the rest is for a person."""
    assert action == script.next_step(status, body).action


@pytest.mark.parametrize(
    ("status", "body", "action"),
    [
        (200, {"machine_state": "ready", "state": "succeeded"}, "done"),
        (200, {"machine_state": "configuring", "state": "running"}, "poll"),
        (200, {"machine_state": "failed", "state": "failed"}, "poll"),
        (200, {}, "poll"),
        (200, {"machine_state": ["ready"]}, "poll"),
        (404, {}, "call"),
        (403, {"machine_state": "ready"}, "done"),
        (403, {}, "stop"),
        (401, {}, "stop"),
        (429, {}, "wait"),
        (502, {}, "wait"),
        (0, {}, "wait"),
    ],
)
def test_what_follows_a_look_at_the_job(status: int, body: dict, action: str) -> None:
    """Only the server's word `ready` ends the watch with success."""
    assert action == script.next_poll_step(status, body).action


@given(
    st.integers(0, 999),
    st.dictionaries(
        st.sampled_from(["machine_state", "state", "detail", "title", "remedy", "status_url"]),
        st.one_of(st.text(), st.none(), st.integers(), st.lists(st.text())),
    ),
)
def test_no_answer_breaks_the_script_or_its_log(status: int, body: dict) -> None:
    """Whatever a server answers, there is a next step, and its message is one printable line."""
    for decide in (script.next_step, script.next_poll_step):
        step = decide(status, body)
        assert step.action in {"poll", "wait", "call", "stop", "done"}
        assert step.message.isprintable()


def test_a_refusal_is_told_with_its_remedy() -> None:
    """The log line of a refusal says what the problem document says, detail and remedy."""
    body = {"title": "This token has expired", "detail": "At noon.", "remedy": "Make a new one."}
    assert (
        "the server answered 403: This token has expired At noon. Make a new one."
        == script.next_step(403, body).message
    )


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_the_wait_doubles_up_to_a_limit(attempt: int, chance: float) -> None:
    """A wait lies between half and the whole of the doubled, bounded time."""
    longest = min(300.0, 2.0 * 2 ** min(attempt - 1, 16))
    assert longest / 2 <= script.backoff(attempt, chance) <= longest


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("17", 17.0),
        ("999999999999", 3600.0),
        ("-5", 0.0),
        ("soon", 0.0),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
    ],
)
def test_retry_after_is_a_number_or_a_date(header: str | None, seconds: float) -> None:
    """Both forms of Retry-After are understood, and bounded."""
    assert seconds == script.retry_after(header, now=10.0)


@pytest.mark.parametrize(
    ("status_url", "expected"),
    [
        ("/api/v1/jobs/1", "http://10.0.0.1:8100/api/v1/jobs/1"),
        ("http://10.0.0.1:8100/api/v1/jobs/1", "http://10.0.0.1:8100/api/v1/jobs/1"),
        ("https://10.0.0.1:8100/api/v1/jobs/1", None),
        ("http://10.0.0.1/api/v1/jobs/1", None),
        ("http://10.0.0.2:8100/", None),
        ("//10.0.0.2:8100/", None),
        ("http://10.0.0.1:8100@evil.example/", None),
        ("http://user@10.0.0.1:8100/", None),
        ("http://10.0.0.1:port/", None),
        ("file:///etc/shadow", None),
    ],
)
def test_the_token_goes_to_the_api_only(status_url: str, expected: str | None) -> None:
    """A status URL of another scheme, host or port is not followed."""
    assert expected == script.same_origin("http://10.0.0.1:8100", status_url)


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        (set(), None),
        ({"fpu", "sse2"}, None),
        (BASE, 1),
        (LEVEL_2 - {"popcnt"}, 1),
        (LEVEL_2, 2),
        (LEVEL_3 - {"avx2"}, 2),
        (LEVEL_3, 3),
        (LEVEL_4 - LEVEL_3 | BASE, 1),
        (LEVEL_4, 4),
    ],
)
def test_x86_64_levels(flags: set[str], level: int | None) -> None:
    """A level needs all flags of it and of those below."""
    assert level == script.x86_64_level(flags)


ROUTES = """\
Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0100A8C0	0003	0	0	100	00000000	0	0	0
wlan0	00000000	0101A8C0	0003	0	0	600	00000000	0	0	0
eth1	0000D50A	00000000	0001	0	0	0	00FFFFFF	0	0	0
down0	0000D50A	00000000	0000	0	0	0	FFFFFFFF	0	0	0
"""


@pytest.mark.parametrize(
    ("address", "interface"),
    [("10.213.0.1", "eth1"), ("192.0.2.7", "eth0"), ("::1", None), ("host", None)],
)
def test_the_interface_is_the_one_that_reaches_the_api(address: str, interface: str | None) -> None:
    """The longest matching route wins, then the lowest metric; a route that is down is none."""
    assert interface == script.route_interface(ROUTES, address)


def test_without_a_route_there_is_no_interface() -> None:
    """An empty table reaches nothing."""
    assert script.route_interface("Iface\n", "10.0.0.1") is None


@pytest.mark.parametrize(
    ("name", "claim"),
    [
        ("node-3", "node-3"),
        ("Node-3.example.org", "node-3"),
        ("localhost", "unnamed"),
        ("", "unnamed"),
        ("42", "unnamed"),
        ("my_old pc", "my-old-pc"),
        ("-x-", "x"),
        ("n" * 80, "n" * 63),
    ],
)
def test_a_hostname_becomes_one_that_the_server_takes(name: str, claim: str) -> None:
    """A fresh Debian may be called anything; the claim is a valid label all the same."""
    assert claim == script.hostname_claim(name)


def test_cpu_and_memory_are_read_from_proc() -> None:
    """Model, level and memory come from the kernel's own words."""
    cpuinfo = "processor\t: 0\nmodel name\t: Old CPU\nflags\t\t: fpu lm\n\nmodel name\t: Other\n"
    assert {"cpu_model": "Old CPU", "x86_64_level": 1} == script.cpu_facts(cpuinfo)
    assert {"cpu_model": None, "x86_64_level": None} == script.cpu_facts("")
    assert 2048 == script.memory_bytes("MemTotal:              2 kB\nMemFree: 1 kB\n")
    assert script.memory_bytes("") is None


def test_disks_are_read_from_sysfs(tmp_path: Path) -> None:
    """A disk has name, size, serial and model; loops, optical drives and empty ones are none."""
    files = {
        "sda/size": "1953525168\n",
        "sda/device/model": "WDC WD10EZEX-08W    \n",
        "sda/device/serial": "WD-123\n",
        "sda/queue/rotational": "1\n",
        "sda/removable": "0\n",
        "nvme0n1/size": "2048\n",
        "nvme0n1/serial": "S4-1\n",
        "loop0/size": "4\n",
        "sr0/size": "4\n",
        "sdb/size": "0\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert [
        {
            "name": "nvme0n1", "size_bytes": 1_048_576, "serial": "S4-1", "model": None,
            "rotational": False, "removable": False,
        },
        {
            "name": "sda", "size_bytes": 1_000_204_886_016, "serial": "WD-123",
            "model": "WDC WD10EZEX-08W", "rotational": True, "removable": False,
        },
    ] == script.disks(tmp_path)  # fmt: skip
    assert [] == script.disks(tmp_path / "missing")


def test_network_cards_are_read_from_sysfs(tmp_path: Path) -> None:
    """A card has a MAC address of its own; the loopback is none."""
    for name, mac in (("eth0", "52:54:00:12:34:56"), ("lo", "00:00:00:00:00:00")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "address").write_text(f"{mac}\n", encoding="utf-8")
    (tmp_path / "eth0" / "speed").write_text("1000\n", encoding="utf-8")
    assert [
        {"name": "eth0", "mac": "52:54:00:12:34:56", "speed_mbit": 1000, "driver": None}
    ] == script.nics(tmp_path)


def test_host_keys_are_sent_without_their_comments(tmp_path: Path) -> None:
    """Type and key of every public host key, in the order of their files."""
    (tmp_path / "ssh_host_rsa_key.pub").write_text("ssh-rsa AAAA root@x\n", encoding="utf-8")
    (tmp_path / "ssh_host_ed25519_key.pub").write_text("ssh-ed25519 BBBB\n", encoding="utf-8")
    (tmp_path / "ssh_host_ed25519_key").write_text("private\n", encoding="utf-8")
    assert ["ssh-ed25519 BBBB", "ssh-rsa AAAA"] == script.host_keys(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "x", '{"api_url": "file:///etc/passwd"}'])
def test_a_configuration_without_a_url_is_refused(tmp_path: Path, text: str) -> None:
    """A configuration must be JSON with an http or https URL."""
    path = tmp_path / "first-boot.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises((ValueError, KeyError, TypeError)):
        script.load_config(path)


def test_this_machines_report_fits_the_api() -> None:
    """What the script says of the machine it runs on is plain JSON of the right shape."""
    facts = script.hardware()
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 0
    assert all(disk["size_bytes"] > 0 for disk in facts["disks"])
