"""The Debian packages that a host needs before it can carry a laboratory."""

import os
import subprocess
from collections.abc import Sequence

from fleet.errors import SetupFailed

HOST_PACKAGES = (
    "ca-certificates",
    "debian-archive-keyring",
    "gpgv",
    "iproute2",
    "mmdebstrap",
    "netcat-openbsd",
    "openssh-client",
    "systemd-container",
    "util-linux",
)


def missing_packages(wanted: Sequence[str] = HOST_PACKAGES) -> tuple[str, ...]:
    """Those of `wanted` that are not installed, in the given order."""
    result = subprocess.run(
        ["dpkg-query", "--show", "--showformat", "${Package}\t${db:Status-Status}\n", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    return not_installed(wanted, result.stdout)


def not_installed(wanted: Sequence[str], statuses: str) -> tuple[str, ...]:
    """Decide from dpkg-query's `<package>\\t<status>` lines what is missing."""
    lines = (line.split("\t") for line in statuses.splitlines())
    installed = {package for package, status in lines if status == "installed"}
    return tuple(package for package in wanted if package not in installed)


def install_packages(packages: Sequence[str]) -> None:
    """Install Debian packages with apt-get. Raises SetupFailed with apt's last words."""
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    for command in (["apt-get", "update"], install):
        result = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        if result.returncode != 0:
            words = (result.stderr or result.stdout).strip().splitlines()[-3:]
            raise SetupFailed(
                f"`{' '.join(command)}` failed: {' '.join(words)}",
                remedy="Run it by hand to see the whole output.",
            )


def require_host() -> None:
    """Raise SetupFailed unless this is root on a host that has every package."""
    if os.geteuid() != 0:
        raise SetupFailed(
            "The laboratory makes namespaces and mounts, which only root may do.",
            remedy="Run the same command as root.",
        )
    missing = missing_packages()
    if missing:
        raise SetupFailed(
            f"The laboratory needs Debian packages that are missing: {', '.join(missing)}.",
            remedy=f"Run: apt-get install {' '.join(missing)}",
        )
