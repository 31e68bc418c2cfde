"""What the laboratory keeps on disk about its machines: `<home>/lab/<name>/`.

machine.json   number, address and base of the machine
upper/, work/  what the machine wrote, by overlayfs
root/          where the clone is mounted, in the machine's own mount namespace
prepared       there once the first start has made host keys and machine id
process.json   the process that keeps the machine running
console.log    what systemd-nspawn and the machine's console said
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from fleet.errors import DeadlineExceeded, UnknownMachine
from fleet.names import check_name
from fleet.settings import Settings
from lab.addresses import allocate_number, lab_subnet
from lab.processes import ProcessMark, is_alive

_LOCK_TIMEOUT = 120.0


class MachineRecord(BaseModel):
    """A machine's lasting facts; `number` is its host number in the subnet."""

    model_config = ConfigDict(frozen=True)

    name: str
    number: int
    address: str
    base: Path


def lab_folder(settings: Settings) -> Path:
    return settings.home / "lab"


def machine_folder(settings: Settings, name: str) -> Path:
    """The machine's folder. Raises InvalidName before a name becomes a path."""
    return lab_folder(settings) / check_name(name)


def list_records(settings: Settings) -> tuple[MachineRecord, ...]:
    """Every machine of this home, by name."""
    files = sorted(lab_folder(settings).glob("*/machine.json"))
    return tuple(MachineRecord.model_validate_json(file.read_text()) for file in files)


def find_record(settings: Settings, name: str) -> MachineRecord | None:
    file = machine_folder(settings, name) / "machine.json"
    return MachineRecord.model_validate_json(file.read_text()) if file.exists() else None


def load_record(settings: Settings, name: str) -> MachineRecord:
    """The record of a machine that must exist. Raises UnknownMachine."""
    record = find_record(settings, name)
    if record is None:
        raise UnknownMachine(
            f"The laboratory has no machine {name}.",
            remedy="`./muster lab list` shows the machines there are.",
        )
    return record


def create_record(settings: Settings, name: str, base: Path) -> MachineRecord:
    """Give a new machine its number and address; the laboratory's lock must be held."""
    subnet = lab_subnet(settings)
    taken = {record.number for record in list_records(settings)}
    number = allocate_number(name, taken, subnet)
    record = MachineRecord(name=name, number=number, address=subnet.address(number), base=base)
    folder = machine_folder(settings, name)
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    write_whole(folder / "machine.json", record.model_dump_json())
    return record


def read_mark(file: Path) -> ProcessMark | None:
    """The live process that a file names; None when the file or the process is gone."""
    try:
        mark = ProcessMark.model_validate_json(file.read_text())
    except (FileNotFoundError, ValidationError):
        return None
    return mark if is_alive(mark) else None


def write_whole(file: Path, text: str) -> None:
    """Replace a file's content at once, so that no reader sees half of it."""
    fresh = file.with_name(f".{file.name}.new")
    fresh.write_text(text)
    fresh.replace(file)


@contextmanager
def lab_lock(settings: Settings) -> Iterator[None]:
    """Hold while changing the network or giving out addresses."""
    with _lock(settings, "lab"):
        yield


@contextmanager
def machine_lock(settings: Settings, name: str) -> Iterator[None]:
    """Hold while starting or stopping one machine."""
    with _lock(settings, f"lab-machine-{check_name(name)}"):
        yield


@contextmanager
def _lock(settings: Settings, what: str) -> Iterator[None]:
    settings.locks_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(settings.locks_dir / f"{what}.lock", timeout=_LOCK_TIMEOUT)
    try:
        lock.acquire()
    except Timeout as error:
        raise DeadlineExceeded(
            f"Waited {_LOCK_TIMEOUT:.0f} s for the lock {lock.lock_file}.",
            remedy="Another command works on the laboratory; see that it ends.",
        ) from error
    try:
        yield
    finally:
        lock.release()
