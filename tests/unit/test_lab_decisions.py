"""Decisions of the laboratory that need no machine: base, launch, control groups, clean-up."""

import os
from pathlib import Path

import pytest

from fleet.errors import SetupFailed
from lab.cgroups import CgroupKind, detect_kind, enter_group, plan_for
from lab.image import base_name, find_keyring, source_lines
from lab.launch import LaunchSpec, check_inner_path, nspawn_command
from lab.mirror import Mirrors
from lab.packages import not_installed
from lab.processes import is_alive, mark_process, parse_stat
from lab.teardown import mounts_below


def launch_spec(kind: CgroupKind) -> LaunchSpec:
    return LaunchSpec(
        name="node-1",
        machine="muster-1a2b3c4d-2",
        base=Path("/cache/base"),
        folder=Path("/home/lab/node-1"),
        netns_path=Path("/run/netns/muster-1a2b3c4d-2"),
        cgroup_kind=kind,
        cgroup="muster-1a2b3c4d/2",
        first_files=(),
        files=(),
        enable=(),
    )


def test_packages_that_are_not_installed_are_missing() -> None:
    """Removed packages whose configuration stays are missing, as are unknown ones."""
    statuses = "iproute2\tinstalled\nmmdebstrap\tconfig-files\n"
    wanted = ("iproute2", "mmdebstrap", "gpgv")
    assert ("mmdebstrap", "gpgv") == not_installed(wanted, statuses)


def test_a_host_without_the_keys_of_debian_13_is_told_what_to_install(tmp_path: Path) -> None:
    """An old keyring does not do, though it has the right name."""
    (tmp_path / "debian-archive-keyring.gpg").touch()
    with pytest.raises(SetupFailed) as failure:
        find_keyring(tmp_path)
    assert "debian-archive-keyring" in failure.value.remedy


@pytest.mark.parametrize("suffix", ["gpg", "pgp"])
def test_the_keyring_is_found_on_debian_12_and_13(tmp_path: Path, suffix: str) -> None:
    """Both names that Debian gives the keyring are known."""
    (tmp_path / f"debian-archive-trixie-stable.{suffix}").touch()
    keyring = tmp_path / f"debian-archive-keyring.{suffix}"
    keyring.touch()
    assert keyring == find_keyring(tmp_path)


def test_the_base_has_release_updates_and_security() -> None:
    """apt is given three suites, each signed by Debian's keyring."""
    lines = source_lines(Mirrors("http://m/debian", "http://m/sec"), Path("/k.gpg"))
    assert (
        "deb [signed-by=/k.gpg] http://m/debian trixie main",
        "deb [signed-by=/k.gpg] http://m/debian trixie-updates main",
        "deb [signed-by=/k.gpg] http://m/sec trixie-security main",
    ) == lines


def test_each_architecture_has_a_base_of_its_own() -> None:
    """The base's name follows from its ingredients and nothing else."""
    assert base_name("amd64") == base_name("amd64")
    assert base_name("amd64") != base_name("arm64")


@pytest.mark.parametrize("path", ["/etc/hosts", "/usr/local/lib/x y.conf"])
def test_plain_absolute_paths_may_be_written(path: str) -> None:
    """A file may go anywhere in a machine."""
    assert path == check_inner_path(path)


@pytest.mark.parametrize(
    "path", ["", "/", "etc/hosts", "/etc/../x", "/etc//x", "/a/", "/a\n", "/./a"]
)
def test_other_paths_may_not_be_written(path: str) -> None:
    """A path that is not what it seems is refused."""
    with pytest.raises(ValueError, match="no plain absolute path"):
        check_inner_path(path)


def test_a_version_1_host_tells_systemd_so() -> None:
    """nspawn stays in the group made for it, and the machine's systemd is told twice."""
    command = nspawn_command(launch_spec(CgroupKind.LEGACY))
    assert "--keep-unit" in command
    assert "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1" in command


def test_a_version_2_host_under_systemd_is_left_to_systemd() -> None:
    """nspawn asks for a scope, and systemd boots without arguments."""
    command = nspawn_command(launch_spec(CgroupKind.SCOPE))
    assert "--keep-unit" not in command
    assert "/usr/lib/muster-lab/init" == command[-1]


def test_machines_get_no_right_to_set_the_clock_or_load_modules() -> None:
    """Beyond nspawn's own set of rights there is the one for the machine's own network."""
    command = nspawn_command(launch_spec(CgroupKind.LEGACY))
    assert ["--capability=CAP_NET_ADMIN"] == [arg for arg in command if "capability" in arg]


@pytest.mark.parametrize(
    ("unified", "systemd", "expected"),
    [
        (True, True, CgroupKind.SCOPE),
        (True, False, CgroupKind.UNIFIED),
        (False, True, CgroupKind.LEGACY),
        (False, False, CgroupKind.LEGACY),
    ],
)
def test_the_kind_of_control_groups_is_seen(
    tmp_path: Path, unified: bool, systemd: bool, expected: CgroupKind
) -> None:
    """Version 2 shows by its file at the root; systemd by its runtime folder."""
    if unified:
        (tmp_path / "cgroup.controllers").touch()
    runs = tmp_path / "run-systemd"
    if systemd:
        runs.mkdir()
    assert expected is detect_kind(tmp_path, runs)
    assert ("--keep-unit" in plan_for(expected).nspawn_flags) is not (unified and systemd)


def test_a_cpuset_is_filled_before_it_is_entered(tmp_path: Path) -> None:
    """Every hierarchy gets the group, and the cpuset's its parent's CPUs."""
    for hierarchy in ("cpuset", "memory"):
        for folder in ("", "lab", "lab/2"):
            (tmp_path / hierarchy / folder).mkdir(parents=True)
            (tmp_path / hierarchy / folder / "cgroup.procs").touch()
    for folder, cpus in (("", "0-1\n"), ("lab", "\n"), ("lab/2", "\n")):
        (tmp_path / "cpuset" / folder / "cpuset.cpus").write_text(cpus)
    enter_group(CgroupKind.LEGACY, "lab/2", tmp_path)
    assert "0-1" == (tmp_path / "cpuset/lab/2/cpuset.cpus").read_text()
    assert (tmp_path / "memory/lab/2/cgroup.procs").read_text() == str(os.getpid())


def test_a_process_name_cannot_confuse_the_reader() -> None:
    """Brackets and spaces in a command's name do not shift the fields behind it."""
    rest = " ".join(["S", *(str(number) for number in range(1, 50))])
    stat = parse_stat(f"42 (evil) R 1 (x) {rest}")
    assert ("S", 19) == (stat.state, stat.started)


def test_another_process_of_the_same_pid_is_not_ours() -> None:
    """A pid that the kernel gave away again is not taken for the process that had it."""
    mark = mark_process(os.getpid())
    assert mark is not None
    assert is_alive(mark)
    assert not is_alive(mark.model_copy(update={"started": mark.started - 1}))
    assert not is_alive(mark.model_copy(update={"boot_id": "another"}))


def test_only_mounts_below_the_folder_are_taken_down() -> None:
    """Inner mounts come first; a folder whose name merely begins alike is not touched."""
    mountinfo = (
        "1 0 0:1 / / rw - ext4 x rw\n"
        "2 1 0:2 / /v/lab rw - tmpfs x rw\n"
        "3 2 0:3 / /v/lab/a\\040b rw - tmpfs x rw\n"
        "4 1 0:4 / /v/laboratory rw - tmpfs x rw\n"
    )
    assert mounts_below(mountinfo, Path("/v/lab")) == (Path("/v/lab/a b"), Path("/v/lab"))
