"""One `up` per home: who holds it, for the second one to tell and for other commands to find."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from fleet import locks
from fleet.errors import DeadlineExceeded, SetupFailed
from fleet.settings import Settings

# Homes with longer paths keep what is temporary where the system does, as tasks/ansible.py does
# with the private folders of runs.
_LONGEST_TEMPORARY = 64


class Claim(BaseModel):
    """Who runs `up` on a home, and where it listens."""

    model_config = ConfigDict(frozen=True)

    pid: int
    since: datetime
    api_host: str
    api_port: int
    prefect_host: str
    prefect_port: int


def run_dir(settings: Settings) -> Path:
    """Where lock, sockets and generated configuration are; only its owner may look inside."""
    return settings.home / "run"


def temporary_dir(settings: Settings) -> Path | None:
    """Where the control plane's processes keep what is temporary: the home's own folder, since
    Prefect names folders below TMPDIR that another user's Prefect may have made. None if the
    home's path is too long for the sockets that some programs put there.
    """
    path = settings.home / "tmp"
    return path if len(str(path).encode()) <= _LONGEST_TEMPORARY else None


@contextmanager
def claim(settings: Settings) -> Iterator[bool]:
    """Be the only `up` on this home. Raises SetupFailed naming the one that runs.

    Gives whether the one before did not come to its end, so that it may have left something.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locks.hold(_lock(settings), what="this home", timeout=0))
        except DeadlineExceeded as error:
            raise SetupFailed(
                f"Muster runs already on {settings.home}{_who(_read(settings))}.",
                remedy="Stop it with Ctrl-C there, or name another home: --home DIR (MUSTER_HOME).",
            ) from error
        crashed = _record(settings).exists()
        mine = Claim(
            pid=os.getpid(),
            since=datetime.now(UTC),
            api_host=settings.api_host,
            api_port=settings.api_port,
            prefect_host=settings.prefect_host,
            prefect_port=settings.prefect_port,
        )
        _record(settings).write_text(mine.model_dump_json())
        try:
            yield crashed
        finally:
            _record(settings).unlink(missing_ok=True)


def holder(settings: Settings) -> Claim | None:
    """The `up` that runs on this home now."""
    try:
        return _read(settings) if locks.is_held(_lock(settings)) else None
    except PermissionError:
        return None  # another user's home


def _lock(settings: Settings) -> Path:
    return run_dir(settings) / "up.lock"


def _record(settings: Settings) -> Path:
    return run_dir(settings) / "up.json"


def _read(settings: Settings) -> Claim | None:
    try:
        return Claim.model_validate_json(_record(settings).read_text())
    except (OSError, ValidationError):
        return None


def _who(found: Claim | None) -> str:
    if found is None:
        return ""
    return (
        f": process {found.pid} since {found.since.astimezone():%F %T}, "
        f"Prefect at http://{found.prefect_host}:{found.prefect_port}, "
        f"API at http://{found.api_host}:{found.api_port}"
    )
