"""The base that all laboratory machines share: a Debian 13 root folder, made by mmdebstrap.

It is kept in the cache folder under a name made of what went in, and is never written again:
machines are copy-on-write clones of it.
"""

import hashlib
import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from fleet.errors import SetupFailed
from fleet.settings import Settings
from lab.mirror import Mirrors, find_mirrors

KEYRINGS_DIR = Path("/usr/share/keyrings")
RECIPE = 1
"""Raise this when `_finish` or the flags change, so that a new base is built."""

SUITE = "trixie"
PACKAGES = (
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
)
_FLAGS = (
    "--mode=root",
    "--variant=minbase",
    '--aptopt=Acquire::Languages "none"',
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
)
INIT = "/usr/lib/muster-lab/init"
_INIT_SCRIPT = """\
#!/bin/sh
# nspawn mounts the version 1 controllers read-only; services such as Docker write there.
for hierarchy in /sys/fs/cgroup/*/; do
    mountpoint -q "$hierarchy" && mount -o remount,bind,rw "$hierarchy"
done
exec /lib/systemd/systemd "$@"
"""
_UNMANAGED = """\
# The laboratory gives the interface its address from outside.
[Match]
Name=eth0

[Link]
Unmanaged=yes
"""
_BUILD_TIMEOUT = 1800.0

Progress = Callable[[str], None]


def ensure_base(settings: Settings, progress: Progress = lambda _: None) -> Path:
    """The root folder of the base, built first if this host has none yet.

    Takes well under a minute on a near mirror. `progress` is told each step. Raises SetupFailed.
    """
    images = settings.cache_dir / "lab"
    images.mkdir(parents=True, exist_ok=True)
    base = images / base_name(_architecture())
    if base.is_dir():
        return base
    try:
        with FileLock(images / ".build.lock", timeout=_BUILD_TIMEOUT):
            if not base.is_dir():
                _remove_unfinished(images)
                _build(find_mirrors(settings), base, progress)
    except Timeout as error:
        raise SetupFailed(
            f"Another process has been building the base for {_BUILD_TIMEOUT:.0f} s.",
            remedy=f"End it, or remove {images} and try again.",
        ) from error
    return base


def base_name(architecture: str) -> str:
    """The folder name of the base: the same ingredients, the same name."""
    parts = (str(RECIPE), SUITE, architecture, *PACKAGES, *_FLAGS, _INIT_SCRIPT, _UNMANAGED)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return f"debian-{SUITE}-{architecture}-{digest[:12]}"


def find_keyring(keyrings: Path = KEYRINGS_DIR) -> Path:
    """The host's keyring of Debian's archive keys. Raises SetupFailed without those of 13."""
    has_release = any(keyrings.glob(f"debian-archive-{SUITE}-*"))
    for name in ("debian-archive-keyring.gpg", "debian-archive-keyring.pgp"):
        if has_release and (keyrings / name).exists():
            return keyrings / name
    raise SetupFailed(
        f"{keyrings} holds no keys of Debian 13's archive, so nothing from it can be verified.",
        remedy="Run: apt-get update && apt-get install debian-archive-keyring",
    )


def source_lines(mirrors: Mirrors, keyring: Path) -> tuple[str, ...]:
    """apt's lines for the release, its updates and its security archive."""
    signed = f"deb [signed-by={keyring}]"
    return (
        f"{signed} {mirrors.debian} {SUITE} main",
        f"{signed} {mirrors.debian} {SUITE}-updates main",
        f"{signed} {mirrors.security} {SUITE}-security main",
    )


def _build(mirrors: Mirrors, base: Path, progress: Progress) -> None:
    unfinished = base.parent / f".building-{base.name}"
    progress(f"building the base of Debian 13 from {mirrors.debian}")
    try:
        _run_mmdebstrap(unfinished, source_lines(mirrors, find_keyring()), progress)
        _finish(unfinished)
        os.rename(unfinished, base)
    finally:
        _remove_unfinished(base.parent)


def _run_mmdebstrap(target: Path, sources: Sequence[str], progress: Progress) -> None:
    """Run mmdebstrap in mount and pid namespaces of its own, which end with this process."""
    isolation = "setpriv --pdeathsig KILL unshare --mount --pid --fork --kill-child --mount-proc"
    packages = f"--include={','.join(PACKAGES)}"
    command = [*isolation.split(), "mmdebstrap", *_FLAGS, packages, SUITE, str(target), *sources]
    environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
    last_words: deque[str] = deque(maxlen=6)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=environment,
    ) as process:
        assert process.stderr is not None  # noqa: S101 - a pipe was asked for
        for line in process.stderr:
            last_words.append(line.strip())
            if line.startswith("I: "):
                progress(line.removeprefix("I: ").strip().rstrip("."))
    if process.returncode != 0:
        raise SetupFailed(
            f"mmdebstrap could not build Debian 13: {' / '.join(last_words)}",
            remedy="See that the host's own `apt-get update` works, or set MUSTER_DEBIAN_MIRROR.",
        )


def _finish(root: Path) -> None:
    """Take out what belongs to this host or to one machine; add what every machine needs."""
    for key in (root / "etc/ssh").glob("ssh_host_*_key*"):
        key.unlink()
    for name in ("etc/resolv.conf", "etc/hostname", "etc/apt/sources.list"):
        (root / name).unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    (root / "etc/systemd/system/console-getty.service").symlink_to("/dev/null")
    network = root / "etc/systemd/network/10-lab.network"
    network.parent.mkdir(parents=True, exist_ok=True)
    network.write_text(_UNMANAGED)
    init = root / INIT.lstrip("/")
    init.parent.mkdir(parents=True, exist_ok=True)
    init.write_text(_INIT_SCRIPT)
    init.chmod(0o755)


def _remove_unfinished(images: Path) -> None:
    for leftover in images.glob(".building-*"):
        shutil.rmtree(leftover)


def _architecture() -> str:
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
