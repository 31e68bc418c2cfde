"""The process that becomes a machine: `python -m lab.launch`, a LaunchSpec on its stdin.

It mounts the machine's clone in a mount namespace that nobody else sees, puts files into it,
and starts systemd-nspawn, detached. When the last process of the machine ends, the kernel
takes the mount down: no crash can leave one behind.

Returns 0 once systemd-nspawn is started; else says on stderr why not and returns 1.
"""

import ctypes
import os
import subprocess
import sys
import uuid
from pathlib import Path, PurePosixPath
from typing import Annotated

from pydantic import AfterValidator, Base64Bytes, BaseModel, ConfigDict, Field

from lab.cgroups import CgroupKind, enter_group, plan_for
from lab.image import INIT
from lab.processes import mark_process

_CLONE_NEWNS = 0x00020000
_MS_REC_SLAVE = 0x4000 | 0x80000

# nspawn ends with 133 when the machine wants to reboot, and leaves that to its parent.
_BOOT_LOOP = 'while :; do "$@"; [ $? -eq 133 ] || exit; done'


def check_inner_path(path: str) -> str:
    """Return `path` if it is absolute and plain, as paths inside a machine must be."""
    plain = path.isprintable() and str(PurePosixPath(path)) == path
    if not plain or not path.startswith("/") or path == "/" or ".." in PurePosixPath(path).parts:
        raise ValueError(f"{path!r} is no plain absolute path")
    return path


class FileSpec(BaseModel):
    """A file to write into the clone, owned by root."""

    model_config = ConfigDict(frozen=True)

    path: Annotated[str, AfterValidator(check_inner_path)]
    content: Base64Bytes
    mode: int = Field(ge=0, le=0o7777)


class LaunchSpec(BaseModel):
    """All that a machine's start needs to know. Paths are the host's unless they say inside."""

    model_config = ConfigDict(frozen=True)

    name: str
    machine: str
    base: Path
    folder: Path
    netns_path: Path
    cgroup_kind: CgroupKind
    cgroup: str
    first_files: tuple[FileSpec, ...]
    files: tuple[FileSpec, ...]
    enable: tuple[str, ...]

    @property
    def root(self) -> Path:
        return self.folder / "root"

    @property
    def upper(self) -> Path:
        return self.folder / "upper"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def prepared(self) -> Path:
        return self.folder / "prepared"

    @property
    def log(self) -> Path:
        return self.folder / "console.log"

    @property
    def process_file(self) -> Path:
        return self.folder / "process.json"


def main() -> int:
    spec = LaunchSpec.model_validate_json(sys.stdin.read())
    os.umask(0o022)
    try:
        _mount_clone(spec)
        _prepare(spec)
        _start(spec)
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", None) or str(error)
        print(f"{spec.name}: {words.strip()}", file=sys.stderr)  # noqa: T201 - our parent reads it
        return 1
    return 0


def nspawn_command(spec: LaunchSpec) -> list[str]:
    """systemd-nspawn's command line for this machine."""
    plan = plan_for(spec.cgroup_kind)
    return [
        "systemd-nspawn",
        f"--directory={spec.root}",
        f"--machine={spec.machine}",
        f"--hostname={spec.name}",
        f"--network-namespace-path={spec.netns_path}",
        *plan.nspawn_flags,
        "--quiet",
        "--register=no",
        "--console=pipe",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--settings=no",
        "--kill-signal=SIGRTMIN+3",
        "--capability=CAP_NET_ADMIN",
        INIT,
        *plan.init_arguments,
    ]


def _mount_clone(spec: LaunchSpec) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(None, b"/", None, _MS_REC_SLAVE, None) != 0:
        raise OSError(ctypes.get_errno(), "no mount namespace of its own")
    for folder in (spec.root, spec.upper, spec.work):
        folder.mkdir(parents=True, exist_ok=True)
    # The paths go in as relative ones: a comma or colon in them would split the options.
    options = f"lowerdir=lower,upperdir={spec.upper.name},workdir={spec.work.name}"
    lower = spec.folder / "lower"
    lower.unlink(missing_ok=True)
    lower.symlink_to(spec.base)
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, spec.root.name],
        cwd=spec.folder,
        check=True,
        capture_output=True,
        text=True,
    )


def _prepare(spec: LaunchSpec) -> None:
    """Write what this start brings, and at the first start what makes the machine itself."""
    first = not spec.prepared.exists()
    files = (*spec.first_files, *spec.files) if first else spec.files
    child = os.fork()
    if child == 0:
        _write_inside(spec.root, files, first)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise OSError("the files could not be written into the machine")
    if first:
        _inside(spec, "ssh-keygen", "-A")
    if spec.enable:
        _inside(spec, "systemctl", "enable", *spec.enable)
    spec.prepared.touch()


def _write_inside(root: Path, files: tuple[FileSpec, ...], first: bool) -> None:
    """Write in a child whose root is the clone, so that no link in there leads out."""
    status = 1
    try:
        os.chroot(root)
        os.chdir("/")
        if first:
            Path("/etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        for file in files:
            _write(file)
        status = 0
    finally:
        os._exit(status)


def _write(file: FileSpec) -> None:
    path = Path(file.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(file.content)
        os.fchmod(stream.fileno(), file.mode)
    fresh.replace(path)


def _inside(spec: LaunchSpec, *command: str) -> None:
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_OFFLINE": "1"}
    subprocess.run(
        ["chroot", str(spec.root), *command],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )


def _start(spec: LaunchSpec) -> None:
    """Fork the machine's first process and wait until it has become systemd-nspawn's parent."""
    log = os.open(spec.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    reader, writer = os.pipe()  # closed in the child by exec
    if os.fork() == 0:
        _become_machine(spec, log, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        failure = stream.read()
    if failure:
        raise OSError(failure.decode())


def _become_machine(spec: LaunchSpec, log: int, writer: int) -> None:
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        _record_self(spec)
        enter_group(spec.cgroup_kind, spec.cgroup)
        environment = {
            "PATH": os.environ["PATH"],
            "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
            **dict(plan_for(spec.cgroup_kind).nspawn_environment),
        }
        loop = ["sh", "-c", _BOOT_LOOP, spec.machine, *nspawn_command(spec)]
        os.execvpe("sh", loop, environment)  # noqa: S606 - the loop is a constant
    except BaseException as error:
        os.write(writer, str(error).encode() or b"unknown")
    finally:
        os._exit(1)


def _record_self(spec: LaunchSpec) -> None:
    """Write down this process before it becomes the machine's, so that no crash can lose it."""
    mark = mark_process(os.getpid())
    assert mark is not None  # noqa: S101 - this process is alive
    fresh = spec.process_file.with_suffix(".new")
    fresh.write_text(mark.model_dump_json())
    fresh.replace(spec.process_file)


if __name__ == "__main__":
    sys.exit(main())
