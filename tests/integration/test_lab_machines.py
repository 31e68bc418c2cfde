"""Real laboratory machines: what they are, what they leave, what a crash leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from fleet.errors import InvalidRequest, MusterError, SetupFailed, UnknownMachine
from fleet.namespaces import connect, open_listening_socket
from fleet.settings import CHECKOUT, Settings
from lab import machine, network, teardown
from lab.addresses import lab_names, lab_subnet
from lab.image import ensure_base
from lab.keepers import find_processes
from lab.packages import missing_packages
from lab.processes import is_alive, mark_process, wait_until
from lab.provision import InjectedFile
from lab.proxy_process import ensure_proxy, find_proxy, stop_proxy
from lab.store import find_record, lab_folder, load_record, machine_folder

pytestmark = pytest.mark.root

BOOT_LIMIT = 15.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Settings]:
    """Settings of a laboratory of the test's own, taken down afterwards."""
    if os.geteuid() != 0:
        pytest.skip("the laboratory needs root")
    if missing_packages():
        pytest.skip(f"Debian packages are missing: {' '.join(missing_packages())}")
    settings = Settings(home=tmp_path / "home")
    ensure_base(settings)
    yield settings
    teardown.cleanup_leftovers(settings)


def inside(settings: Settings, name: str, *command: str) -> str:
    """Run a command in a machine and return what it prints."""
    result = subprocess.run(
        machine.console_command(settings, name, command),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert 0 == result.returncode, result.stdout + result.stderr
    return result.stdout.strip()


def traces(settings: Settings) -> list[str]:
    """Everything of a laboratory that the host can see while it runs."""
    names = lab_names(settings.home)
    found = [f"namespace {netns}" for netns in network.namespaces_of(names)]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in mounts if names.netns in line or str(settings.home) in line]
    found += [f"group {path}" for path in Path("/sys/fs/cgroup").glob(f"**/{names.netns}*")]
    found += [f"folder {path}" for path in Path("/run/systemd").glob(f"*/*/{names.netns}*")]
    for process in psutil.process_iter(["cmdline", "environ"]):
        words = [
            *(process.info["cmdline"] or []),
            (process.info["environ"] or {}).get("MUSTER_HOME"),
        ]
        if any(names.netns in word or str(settings.home) in word for word in words if word):
            found.append(f"process {process.pid} {words}")
    return found


def host_network() -> dict[str, object]:
    """The host's links, addresses, routes and forwarding, without counters and lifetimes."""

    def ask(*arguments: str) -> list[dict[str, object]]:
        result = subprocess.run(["ip", "-j", *arguments], capture_output=True, check=True)
        return json.loads(result.stdout or "[]")

    return {
        "links": sorted(str(link["ifname"]) for link in ask("link")),
        "addresses": sorted(
            str(address["local"])
            for link in ask("addr")
            for address in link["addr_info"]  # type: ignore[attr-defined]
        ),
        "routes": ask("route") + ask("-6", "route"),
        "forwarding": Path("/proc/sys/net/ipv4/ip_forward").read_text(),
    }


def test_a_machine_is_up_in_time_and_greets_through_the_namespace(
    lab: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing but the base to sshd's greeting takes less than 15 s."""
    began = time.monotonic()
    booted = machine.boot(lab, "node-1")
    took = time.monotonic() - began
    with connect(lab_names(lab.home).netns, booted.address, 22, timeout=5) as connection:
        assert connection.recv(8).startswith(b"SSH-2.0-")
    with capsys.disabled():
        print(f"\nbooted to sshd in {took:.2f} s")  # noqa: T201 - a figure for people
    assert took < BOOT_LIMIT


def test_a_machine_is_a_whole_debian_13(lab: Settings) -> None:
    """systemd finds nothing failed, the network is online, and the release is trixie."""
    ensure_proxy(lab)
    machine.boot(lab, "node-1")
    assert "running" == inside(lab, "node-1", "systemctl", "is-system-running", "--wait")
    inside(lab, "node-1", "systemctl", "start", "network-online.target")
    assert "node-1" == inside(lab, "node-1", "hostname")
    assert "trixie" in inside(lab, "node-1", "cat", "/etc/os-release")


def test_packages_come_through_the_proxy(lab: Settings) -> None:
    """`apt-get` updates and installs in a machine that has no other way out."""
    ensure_proxy(lab)
    machine.boot(lab, "node-1")
    inside(lab, "node-1", "apt-get", "update", "--error-on=any")
    inside(lab, "node-1", "apt-get", "install", "--yes", "hello")
    assert "Hello, world!" == inside(lab, "node-1", "hello")
    assert list((lab.cache_dir / "archives/debian/pool").rglob("hello_*.deb"))


def test_what_is_injected_is_there_before_the_boot(lab: Settings) -> None:
    """Files come as root's with their mode, units run, and the next boot can bring others."""
    unit = (
        "[Unit]\nWants=network-online.target\nAfter=network-online.target\n[Service]\n"
        "Type=oneshot\nExecStart=/bin/cp /etc/muster/token /root/seen\n"
        "[Install]\nWantedBy=multi-user.target\n"
    )
    files = [
        InjectedFile("/etc/muster/token", b"first", 0o600),
        InjectedFile("/etc/systemd/system/probe.service", unit.encode()),
    ]
    machine.boot(lab, "node-1", files, ["probe.service"])
    inside(lab, "node-1", "systemctl", "is-system-running", "--wait")
    assert "first" == inside(lab, "node-1", "cat", "/root/seen")
    assert "600 root root" == inside(lab, "node-1", "stat", "-c", "%a %U %G", "/etc/muster/token")
    machine.stop(lab, "node-1")
    machine.boot(lab, "node-1", [InjectedFile("/etc/muster/token", b"second", 0o600)])
    inside(lab, "node-1", "systemctl", "is-system-running", "--wait")
    assert "second" == inside(lab, "node-1", "cat", "/root/seen")


def test_two_machines_share_the_base_and_nothing_else(lab: Settings) -> None:
    """Booted at once, they differ in address, host keys, machine id and files."""
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda name: machine.boot(lab, name), ["node-1", "node-2"])
    assert load_record(lab, "node-1").base == load_record(lab, "node-2").base
    assert one.address != two.address
    for file in ("/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub", "/etc/hostname"):
        assert inside(lab, "node-1", "cat", file) != inside(lab, "node-2", "cat", file)
    inside(lab, "node-1", "touch", "/root/mine", "/usr/bin/mine")
    assert "" == inside(lab, "node-2", "sh", "-c", "ls /root /usr/bin | grep mine || true")
    assert not (load_record(lab, "node-1").base / "usr/bin/mine").exists()


def test_the_base_holds_no_secret_and_no_trace_of_the_host(lab: Settings) -> None:
    """No host key, machine id or resolver is shared by all machines."""
    base = ensure_base(lab)
    assert [] == list((base / "etc/ssh").glob("ssh_host_*"))
    assert "" == (base / "etc/machine-id").read_text()
    for name in ("etc/resolv.conf", "etc/hostname", "etc/apt/sources.list"):
        assert not (base / name).exists()


def test_the_host_gets_no_interface_and_no_route(lab: Settings) -> None:
    """Links, addresses, routes and forwarding of the host are the same, up and down."""
    before = host_network()
    ensure_proxy(lab)
    machine.boot(lab, "node-1")
    assert before == host_network()
    teardown.stop_all(lab)
    assert before == host_network()


def test_a_socket_opened_in_the_namespace_serves_machines(lab: Settings) -> None:
    """A process of the host answers a machine by way of the gateway's address."""
    names, gateway = lab_names(lab.home), lab_subnet(lab).gateway
    booted = machine.boot(lab, "node-1")
    with open_listening_socket(names.netns, gateway, 8100) as listener:
        with pytest.raises(SetupFailed, match="8100"):
            open_listening_socket(names.netns, gateway, 8100)
        script = f"import socket; socket.create_connection(('{gateway}', 8100)).send(b'hello')"
        inside(lab, "node-1", "python3", "-c", script)
        connection, (source, _) = listener.accept()
        with connection:
            assert (b"hello", booted.address) == (connection.recv(5), source)


def test_stop_leaves_the_disk_and_nothing_else(lab: Settings) -> None:
    """Processes, mounts, namespaces and groups go; what the machine wrote stays."""
    ensure_proxy(lab)
    first = machine.boot(lab, "node-1")
    inside(lab, "node-1", "sh", "-c", "echo kept > /root/file")
    keys = inside(lab, "node-1", "cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    boot_id = inside(lab, "node-1", "cat", "/proc/sys/kernel/random/boot_id")
    kinds = {trace.split()[0] for trace in traces(lab)}
    assert {"namespace", "group", "process"} <= kinds
    machine.stop(lab, "node-1")
    teardown.release_idle(lab)
    assert [] == traces(lab)
    second = machine.boot(lab, "node-1")
    assert first.address == second.address
    assert "kept" == inside(lab, "node-1", "cat", "/root/file")
    assert keys == inside(lab, "node-1", "cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    assert boot_id != inside(lab, "node-1", "cat", "/proc/sys/kernel/random/boot_id")


def test_a_machine_that_hangs_in_its_shutdown_is_killed(lab: Settings) -> None:
    """After the deadline nothing of it is left, whatever it wanted to do."""
    unit = "[Service]\nExecStart=/bin/sleep infinity\nExecStop=/bin/sleep infinity\n"
    files = [InjectedFile("/etc/systemd/system/clings.service", unit.encode())]
    machine.boot(lab, "node-1", files)
    inside(lab, "node-1", "systemctl", "start", "clings.service")
    began = time.monotonic()
    machine.stop(lab, "node-1", timeout=2.0)
    assert 2.0 <= time.monotonic() - began < BOOT_LIMIT
    teardown.cleanup_leftovers(lab)
    assert [] == traces(lab)


def test_a_reboot_inside_is_a_reboot(lab: Settings) -> None:
    """`reboot` in a machine brings it up again, with another boot id, and it can be stopped."""
    machine.boot(lab, "node-1")
    boot_id = inside(lab, "node-1", "cat", "/proc/sys/kernel/random/boot_id")
    before = machine.get_machine(lab, "node-1").leader_pid
    inside(lab, "node-1", "systemctl", "reboot")
    wait_until(
        lambda: machine.get_machine(lab, "node-1").leader_pid not in (None, before),
        what="another PID 1",
        timeout=20,
    )
    machine.wait_for_sshd(lab, load_record(lab, "node-1"), 20)
    assert boot_id != inside(lab, "node-1", "cat", "/proc/sys/kernel/random/boot_id")
    machine.stop(lab, "node-1")
    assert "stopped" == machine.get_machine(lab, "node-1").state


def test_a_crashed_machine_is_seen_and_boots_again(lab: Settings) -> None:
    """Killing PID 1 is a power cut: the state is stopped, the disk is there at the next boot."""
    machine.boot(lab, "node-1")
    inside(lab, "node-1", "sh", "-c", "echo kept > /root/file")
    machine.crash(lab, "node-1")
    assert "stopped" == machine.get_machine(lab, "node-1").state
    with pytest.raises(SetupFailed, match="does not run"):
        machine.crash(lab, "node-1")
    machine.boot(lab, "node-1")
    assert "kept" == inside(lab, "node-1", "cat", "/root/file")


@pytest.mark.parametrize("victim", ["supervisor", "nspawn", "both"])
def test_a_machine_without_its_keepers_is_found_and_ended(lab: Settings, victim: str) -> None:
    """Where the processes above PID 1 were killed, the machine still shows, stops, and leaves
    nothing."""
    machine.boot(lab, "node-1")
    found = find_processes(lab, load_record(lab, "node-1"))
    assert found.supervisor
    assert found.nspawn
    targets = {"supervisor": [found.supervisor], "nspawn": [found.nspawn]}
    for mark in targets.get(victim, [found.supervisor, found.nspawn]):
        os.kill(mark.pid, signal.SIGKILL)
        wait_until(lambda mark=mark: not is_alive(mark), what="the victim's end", timeout=5)
    assert machine.get_machine(lab, "node-1").leader_pid == (found.leader and found.leader.pid)
    machine.stop(lab, "node-1")
    teardown.cleanup_leftovers(lab)
    assert [] == traces(lab)


def test_what_a_killed_command_left_is_cleaned_up(lab: Settings) -> None:
    """Killed in the middle of a boot, a command leaves a machine that the next one removes."""
    script = (
        "from fleet.settings import load_settings\nfrom lab import machine, proxy_process\n"
        "proxy_process.ensure_proxy(load_settings())\nmachine.boot(load_settings(), 'node-1')\n"
        "machine.boot(load_settings(), 'node-2')\n"
    )
    environment = os.environ | lab.to_environment()
    with subprocess.Popen([sys.executable, "-c", script], cwd=CHECKOUT, env=environment) as command:
        second = machine_folder(lab, "node-2") / "process.json"
        wait_until(second.exists, what="the second machine's start", timeout=30)
        command.kill()
    found = teardown.cleanup_leftovers(lab)
    assert {"machine node-1", "machine node-2", "proxy"} <= set(found)
    assert [] == traces(lab)
    assert () == teardown.cleanup_leftovers(lab)
    assert "running" == machine.boot(lab, "node-2").state


def test_a_machine_whose_record_is_gone_is_cleaned_up(lab: Settings) -> None:
    """A namespace with this home's name is emptied and removed without any file of ours."""
    machine.boot(lab, "node-1")
    (machine_folder(lab, "node-1") / "machine.json").unlink()
    teardown.cleanup_leftovers(lab)
    assert [] == traces(lab)


def test_a_mount_below_the_laboratory_is_taken_down(lab: Settings) -> None:
    """A file system that somebody mounted there does not outlive the laboratory."""
    folder = lab_folder(lab) / "node-1" / "root"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    assert teardown.cleanup_leftovers(lab) == (f"mount {folder}",)
    assert [] == traces(lab)


def test_a_stranger_with_a_recorded_pid_is_left_alone(lab: Settings) -> None:
    """A process that got the pid of one of ours is not killed in its place."""
    with subprocess.Popen(["sleep", "60"]) as stranger:
        mark = mark_process(stranger.pid)
        assert mark
        machine.boot(lab, "node-1")
        machine.crash(lab, "node-1")
        stale = mark.model_copy(update={"started": mark.started - 1})
        (machine_folder(lab, "node-1") / "process.json").write_text(stale.model_dump_json())
        teardown.cleanup_leftovers(lab)
        assert stranger.poll() is None
        stranger.kill()


def test_a_killed_proxy_is_started_again(lab: Settings) -> None:
    """`ensure_proxy` sees that nothing answers and starts another; a second call starts none."""
    ensure_proxy(lab)
    first = find_proxy(lab)
    ensure_proxy(lab)
    assert first == find_proxy(lab)
    assert first
    os.kill(first.process.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(first.process), what="the proxy's end", timeout=5)
    ensure_proxy(lab)
    assert find_proxy(lab) not in (None, first)
    stop_proxy(lab)
    assert find_proxy(lab) is None


def test_the_last_machine_takes_the_network_with_it_only_without_a_supervisor(
    lab: Settings,
) -> None:
    """A standalone proxy and the network go with the last machine, not before."""
    ensure_proxy(lab)
    for name in ("node-1", "node-2"):
        machine.boot(lab, name)
    for name, expected in (("node-1", True), ("node-2", False)):
        machine.destroy(lab, name)
        teardown.release_idle(lab)
        assert expected is network.is_up(lab_names(lab.home))
    assert [] == traces(lab)
    assert not (lab_folder(lab) / "node-1").exists()


def test_a_machine_that_runs_is_returned_but_not_written_to(lab: Settings) -> None:
    """Booting again is harmless; putting files into a running machine is refused."""
    first = machine.boot(lab, "node-1")
    assert first == machine.boot(lab, "node-1")
    with pytest.raises(SetupFailed, match="runs already"):
        machine.boot(lab, "node-1", [InjectedFile("/etc/x", b"")])


@pytest.mark.parametrize(
    ("files", "units", "error"),
    [
        ([InjectedFile("/etc/../../escape", b"x")], [], InvalidRequest),
        ([InjectedFile("/etc/x", b"x", 0o77777)], [], InvalidRequest),
        ([], ["no-such-unit.service"], SetupFailed),
        ([InjectedFile("/etc/hostname/x", b"x")], [], SetupFailed),
        ([InjectedFile("/usr/lib/muster-lab/init", b"#!/bin/false\n", 0o755)], [], SetupFailed),
    ],
)
def test_a_boot_that_fails_says_why_and_leaves_nothing(
    lab: Settings, files: list[InjectedFile], units: list[str], error: type[MusterError]
) -> None:
    """A bad file, a bad unit or a machine that dies at once is a clear error and no remains."""
    with pytest.raises(error) as failure:
        machine.boot(lab, "node-1", files, units)
    assert failure.value.remedy
    teardown.cleanup_leftovers(lab)
    assert [] == traces(lab)


def test_a_link_inside_a_machine_leads_nowhere_outside(lab: Settings, tmp_path: Path) -> None:
    """Files are written with the machine's root as root, whatever its user made of the paths."""
    outside = tmp_path / "outside"
    outside.mkdir()
    machine.boot(lab, "node-1")
    inside(lab, "node-1", "ln", "-s", str(outside), "/etc/trap")
    machine.stop(lab, "node-1")
    with pytest.raises(SetupFailed):
        machine.boot(lab, "node-1", [InjectedFile("/etc/trap/x", b"x")])
    assert [] == list(outside.iterdir())


def test_a_lost_base_is_named(lab: Settings) -> None:
    """A clone without its base is not booted on another."""
    machine.boot(lab, "node-1")
    machine.stop(lab, "node-1")
    file = machine_folder(lab, "node-1") / "machine.json"
    record = load_record(lab, "node-1").model_copy(update={"base": Path("/no/base")})
    file.write_text(record.model_dump_json())
    with pytest.raises(SetupFailed, match="base of the laboratory machine node-1 is gone"):
        machine.boot(lab, "node-1")


def test_a_host_with_version_2_groups_alone_carries_machines(lab: Settings) -> None:
    """Where only version 2 is mounted, and no systemd runs, a machine boots whole all the same."""
    if Path("/run/systemd/system").exists():
        pytest.skip("systemd runs this host, and would be asked for a scope")
    script = (
        "import subprocess, sys\nfrom fleet.settings import load_settings\n"
        "from lab import cgroups, machine, teardown\nsettings = load_settings()\n"
        "assert cgroups.detect_kind() is cgroups.CgroupKind.UNIFIED\n"
        "machine.boot(settings, 'node-1')\n"
        "wait = ['systemctl', 'is-system-running', '--wait']\n"
        "done = subprocess.run(machine.console_command(settings, 'node-1', wait))\n"
        "machine.stop(settings, 'node-1')\nteardown.cleanup_leftovers(settings)\n"
        "sys.exit(done.returncode)\n"
    )
    version_2 = 'umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec "$@"'
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-ec", version_2, "sh", sys.executable, "-c", script],
        cwd=CHECKOUT,
        env=os.environ | lab.to_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (0, "running") == (result.returncode, result.stdout.strip()), result.stderr
    assert [] == traces(lab)


def test_unknown_machines_are_named(lab: Settings) -> None:
    """Stopping, destroying or entering a machine that is not there says so."""
    for action in (machine.stop, machine.destroy, machine.crash, machine.console_command):
        with pytest.raises(UnknownMachine, match="ghost"):
            action(lab, "ghost")
    assert find_record(lab, "ghost") is None
