"""Debian packages that a command needs: listed first, then installed by root."""

import os
import shutil
from collections.abc import Sequence

from cli.render import Reporter
from fleet.errors import SetupFailed
from lab.packages import install_packages, missing_packages

# Ansible reaches machines through Debian's ssh.
CONTROL_PLANE = ("openssh-client",)


def ensure_packages(wanted: Sequence[str], reporter: Reporter) -> None:
    """See that Debian packages are installed. Raises SetupFailed with the command to run.

    On a host that is not Debian nothing is looked for: programs are found on PATH, or missed.
    """
    if shutil.which("dpkg-query") is None:
        return
    missing = missing_packages(wanted)
    if not missing:
        return
    if os.geteuid() != 0:
        raise SetupFailed(
            f"Debian packages are missing: {', '.join(missing)}.",
            remedy=f"Run as root: apt-get install {' '.join(missing)}",
        )
    reporter.say(f"Debian packages to install: {', '.join(missing)}")
    with reporter.step("Debian packages"):
        install_packages(missing)
