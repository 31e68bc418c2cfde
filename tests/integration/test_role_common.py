"""The role `common`, run by hand on a real machine of the laboratory."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from fleet.settings import CHECKOUT, Settings
from lab import machine, teardown
from lab.addresses import lab_names
from lab.image import ensure_base
from lab.packages import missing_packages
from lab.provision import InjectedFile
from lab.proxy_process import ensure_proxy

pytestmark = pytest.mark.root

NAME = "node-1"
MACHINE_ID = "0193b2a6-5d5e-7c1a-9f00-1f2e3d4c5b6a"
PROGRAMS = Path(sys.executable).parent
FOREIGN_KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDq0o8fTn4kCzv3yCwq0mX1b8m3p7m0x1jv1gV6yQd5k other"
)

# Holds an apt lock from the moment it prints a line until its standard input ends.
HOLD_LOCK = """
import fcntl, sys
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Run:
    """What one `ansible-playbook` did: exit code, both outputs, and how many tasks changed."""

    code: int
    output: str
    changed: int


@dataclass(frozen=True)
class Site:
    """A machine, the operator's keys and an inventory view, as Muster would leave them."""

    settings: Settings
    address: str
    leader_pid: int
    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "operator"

    @property
    def public_key(self) -> str:
        return self.key.with_suffix(".pub").read_text().strip()

    @property
    def ssh_options(self) -> list[str]:
        netns = lab_names(self.settings.home).netns
        return [
            "-o",
            f"UserKnownHostsFile={self.folder / 'known_hosts'}",
            "-o",
            "StrictHostKeyChecking=yes",
            "-o",
            f"ProxyCommand=nsenter --net=/run/netns/{netns} nc %h %p",
        ]

    def ssh_command(self, *command: str, user: str = "root") -> list[str]:
        options = [*self.ssh_options, "-o", "BatchMode=yes", "-i", str(self.key)]
        return ["ssh", *options, f"{user}@{self.address}", *command]

    def ssh(self, *command: str, user: str = "root") -> str:
        """Run a command on the machine over SSH and return what it prints."""
        return _output(self.ssh_command(*command, user=user))

    def inside(self, *command: str) -> str:
        """Run a command on the machine without SSH."""
        return _output(["nsenter", f"--target={self.leader_pid}", "--all", *command])

    def play(self, *arguments: str, variables: Mapping[str, object] | None = None) -> Run:
        """Run the playbook by hand, in the checkout, with extra variables."""
        command = [str(PROGRAMS / "ansible-playbook"), "playbook.yaml", *arguments]
        if variables:
            command += ["--extra-vars", json.dumps(variables)]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            cwd=CHECKOUT,
            timeout=240,
            env=ansible_environment(self.settings.home, self.folder),
        )
        output = done.stdout + done.stderr
        recap = re.search(rf"^{NAME} .* changed=(\d+)", done.stdout, re.MULTILINE)
        return Run(done.returncode, output, int(recap.group(1)) if recap else -1)


@dataclass(frozen=True)
class Journey:
    """A fresh machine checked, configured, configured again and checked again, in this order."""

    site: Site
    first_check: Run
    first: Run
    second: Run
    second_check: Run


def ansible_environment(home: Path, folder: Path) -> dict[str, str]:
    """The caller's environment, with this home and with control sockets of the test's own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANSIBLE_", "MUSTER_"))}
    return kept | {
        "MUSTER_HOME": str(home),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(folder / "cp"),
        "ANSIBLE_NOCOLOR": "1",
    }


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def make_key(path: Path, comment: str) -> None:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)]
    subprocess.run(command, check=True, timeout=30)


def boot(settings: Settings, folder: Path) -> Site:
    """Boot a machine whose host key is known beforehand and that trusts the operator's key."""
    make_key(folder / "operator", "operator")
    make_key(folder / "host", "host")
    public = (folder / "operator.pub").read_bytes()
    booted = machine.boot(
        settings,
        NAME,
        inject=[
            InjectedFile("/root/.ssh/authorized_keys", public + f"{FOREIGN_KEY}\n".encode(), 0o600),
            InjectedFile("/etc/ssh/ssh_host_ed25519_key", (folder / "host").read_bytes(), 0o600),
            InjectedFile("/etc/ssh/ssh_host_ed25519_key.pub", (folder / "host.pub").read_bytes()),
        ],
    )
    host_key = " ".join((folder / "host.pub").read_text().split()[:2])
    (folder / "known_hosts").write_text(f"{booted.address} {host_key}\n")
    assert booted.leader_pid is not None
    site = Site(settings, booted.address, booted.leader_pid, folder)
    write_view(site)
    return site


def write_view(site: Site) -> None:
    """Write the inventory view that Muster would generate."""
    options = [f'"{word}"' if " " in word else word for word in site.ssh_options]
    host = {
        "ansible_host": site.address,
        "ansible_user": "root",
        "ansible_ssh_private_key_file": str(site.key),
        "ansible_ssh_common_args": " ".join(options),
        "muster_machine_id": MACHINE_ID,
    }
    site.settings.inventory_dir.mkdir(parents=True)
    view = json.dumps({"machines": {"hosts": {NAME: host}}})
    (site.settings.inventory_dir / "machines.yaml").write_text(view)


def close_connections(folder: Path) -> None:
    """End the SSH connections that Ansible keeps for its next run."""
    for control in (folder / "cp").glob("*"):
        command = ["ssh", "-S", str(control), "-O", "exit", "any"]
        subprocess.run(command, capture_output=True, check=False, timeout=10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A fresh machine, as bare as a minimal Debian: without Ansible's way to ask apt."""
    if os.geteuid() != 0:
        pytest.skip("the laboratory needs root")
    if missing_packages():
        pytest.skip(f"Debian packages are missing: {' '.join(missing_packages())}")
    folder = tmp_path_factory.mktemp("role")
    settings = Settings(home=folder / "home")
    ensure_base(settings)
    try:
        ensure_proxy(settings)
        site = boot(settings, folder)
        site.inside("dpkg", "--purge", "python3-apt")
        yield site
    finally:
        close_connections(folder)
        teardown.cleanup_leftovers(settings)


@pytest.fixture(scope="module")
def journey(site: Site) -> Journey:
    return Journey(
        site,
        first_check=site.play("--check", "--diff"),
        first=site.play(),
        second=site.play(),
        second_check=site.play("--check", "--diff"),
    )


@pytest.fixture
def configured(journey: Journey) -> Site:
    """The machine after the role has been applied."""
    assert journey.first.code == 0, journey.first.output
    return journey.site


def test_check_mode_foresees_changes_on_a_fresh_machine(journey: Journey) -> None:
    """On a machine that the role has never seen, check mode passes and announces changes."""
    assert journey.first_check.code == 0, journey.first_check.output
    assert journey.first_check.changed > 0


def test_first_run_configures_a_fresh_machine(journey: Journey) -> None:
    """The first run passes and changes the machine."""
    assert journey.first.code == 0, journey.first.output
    assert journey.first.changed > 0


def test_second_run_changes_nothing(journey: Journey) -> None:
    """The second run passes, changes nothing and has nothing to warn of."""
    assert journey.second.code == 0, journey.second.output
    assert journey.second.changed == 0, journey.second.output
    assert "WARNING" not in journey.second.output


def test_check_mode_has_nothing_to_add_afterwards(journey: Journey) -> None:
    """Once the machine is configured, check mode passes and announces nothing."""
    assert journey.second_check.code == 0, journey.second_check.output
    assert journey.second_check.changed == 0, journey.second_check.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("passwordauthentication", "no"),
        ("kbdinteractiveauthentication", "no"),
        ("permitemptypasswords", "no"),
        ("permitrootlogin", "without-password"),
        ("pubkeyauthentication", "yes"),
        ("x11forwarding", "no"),
    ],
)
def test_sshd_is_hardened(configured: Site, option: str, value: str) -> None:
    """sshd itself, asked for its effective settings, takes keys and nothing else."""
    effective = dict(line.split(" ", 1) for line in configured.ssh("sshd", "-T").splitlines())
    assert value == effective[option]


def test_sshd_offers_no_password_prompt(configured: Site) -> None:
    """A client without a key is offered public keys alone: the running sshd was reloaded."""
    options = [*configured.ssh_options, "-o", "PreferredAuthentications=none"]
    command = ["ssh", *options, f"root@{configured.address}", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert "Permission denied (publickey)" in done.stderr


def test_machine_bears_its_name(configured: Site) -> None:
    """The machine calls itself by its inventory name, and the name resolves without a network."""
    assert configured.ssh("hostnamectl", "hostname").strip() == NAME
    assert configured.ssh("getent", "ahostsv4", NAME).split()[0] == "127.0.1.1"


def test_facts_are_there_for_later_roles(configured: Site) -> None:
    """The facts file is JSON with the name, the identifier and the roles."""
    facts = json.loads(configured.ssh("cat", "/etc/ansible/facts.d/muster.fact"))
    assert facts["name"] == NAME
    assert facts["machine_id"] == MACHINE_ID
    assert facts["roles"] == ["common"]
    assert facts["container"] is True
    assert re.fullmatch(r"x86-64(-v[2-4])?|", facts["cpu_level"])


def test_admin_logs_in_by_key_and_becomes_root(configured: Site) -> None:
    """The operator's key opens the admin account, whose sudo asks for no password."""
    assert "NOPASSWD: ALL" in configured.ssh("sudo", "-n", "-l", user="muster")
    assert configured.ssh("sudo", "-n", "id", "-un", user="muster").strip() == "root"


@pytest.mark.parametrize("user", ["root", "muster"])
def test_no_account_has_a_password(configured: Site, user: str) -> None:
    """Both accounts that the keys open have locked passwords."""
    assert configured.ssh("passwd", "--status", user).split()[:2] == [user, "L"]


def test_security_updates_come_unattended(configured: Site) -> None:
    """unattended-upgrades, asked itself, runs daily and allows security updates alone."""
    apt = configured.ssh("apt-config", "dump")
    assert 'APT::Periodic::Unattended-Upgrade "1";' in apt
    assert 'APT::Periodic::Update-Package-Lists "1";' in apt
    asked = configured.ssh("unattended-upgrade", "--dry-run", "--verbose", "2>&1")
    allowed = next(line for line in asked.splitlines() if line.startswith("Allowed origins"))
    origins = allowed.partition(": ")[2].split("origin=Debian,")
    assert all("Debian-Security" in origin for origin in origins if origin)


def test_journal_is_bounded_and_kept(configured: Site) -> None:
    """journald's merged settings have the limits, and the journal is on the disk."""
    merged = configured.ssh("systemd-analyze", "cat-config", "systemd/journald.conf")
    assert {"SystemMaxUse=200M", "RuntimeMaxUse=64M"} <= set(merged.splitlines())
    assert configured.ssh("ls", "/var/log/journal").strip()


def test_a_container_says_what_it_leaves_to_its_host(journey: Journey) -> None:
    """In a container the time service is enabled without running, and the run says why."""
    assert journey.site.ssh("systemctl", "is-enabled", "systemd-timesyncd").strip() == "enabled"
    assert journey.site.ssh("systemctl", "--failed", "--plain", "--no-legend").strip() == ""
    assert "A container has its host's clock" in journey.first.output
    assert "A container swaps with its host" in journey.first.output


def test_other_keys_stay_until_ours_are_exclusive(configured: Site) -> None:
    """Foreign keys survive by default and are gone once the operators' keys are exclusive."""
    keys = configured.ssh("cat", "/root/.ssh/authorized_keys").splitlines()
    assert FOREIGN_KEY in keys
    run = configured.play("--tags", "users", variables={"common_authorized_keys_exclusive": True})
    assert run.code == 0, run.output
    keys = configured.ssh("cat", "/root/.ssh/authorized_keys").splitlines()
    assert [configured.public_key] == keys


@pytest.mark.parametrize(
    ("lock", "variables"),
    [
        ("/var/lib/dpkg/lock-frontend", {"common_packages": ["hello"]}),
        ("/var/lib/apt/lists/lock", {"common_apt_cache_valid_time": 0}),
    ],
)
def test_a_held_apt_lock_is_reported_as_one(
    configured: Site, lock: str, variables: dict[str, object]
) -> None:
    """While another program holds apt's lock, the run fails and its message names the lock."""
    configured.ssh("tee", "/root/hold_lock.py", "<<'EOF'\n" + HOLD_LOCK + "EOF")
    holder = subprocess.Popen(
        configured.ssh_command("python3", "/root/hold_lock.py", lock),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        run = configured.play(
            "--tags", "packages", variables={"common_apt_lock_timeout": 1} | variables
        )
    assert run.code == 2, run.output
    assert re.search(
        r"Could not get lock|Unable to acquire the dpkg frontend lock|"
        r"Failed to lock apt for exclusive operation",
        run.output,
    )


@pytest.mark.parametrize(
    "variables",
    [
        {"common_hostname": "node-1; reboot"},
        {"common_hostname": "node-1\n"},
        {"common_admin_user": "../../root"},
        {"common_admin_user": "root"},
        {"common_authorized_keys": ["ssh-ed25519 AAAA operator\nssh-rsa AAAA intruder"]},
        {"common_authorized_keys": [], "common_authorized_keys_exclusive": True},
        {"common_ssh_permit_root_login": "yes"},
    ],
)
def test_bad_variables_are_refused_before_anything_changes(
    configured: Site, variables: dict[str, object]
) -> None:
    """A variable that does not fit fails the run at once, with the machine untouched."""
    run = configured.play("--tags", "hostname,users,ssh", variables=variables)
    assert run.code == 2, run.output
    assert run.changed == 0


def test_passwords_stay_where_no_key_opens_the_door(configured: Site) -> None:
    """Without any authorized key the role refuses to forbid passwords."""
    assert configured.play("--tags", "facts").code == 0  # leaves an open connection behind
    places = ["/root/.ssh", "/home/muster/.ssh"]
    for place in places:
        configured.inside("mv", place, f"{place}.away")
    try:
        run = configured.play("--tags", "ssh", variables={"common_authorized_keys": []})
    finally:
        for place in places:
            configured.inside("mv", f"{place}.away", place)
    assert run.code == 2, run.output
    assert "has no authorized key" in run.output
