"""What machine the figures come from."""

import os
import platform
from pathlib import Path


def describe() -> str:
    """One line: processor, cores, memory, distribution, kernel, Python."""
    cpu = _field(Path("/proc/cpuinfo"), "model name", ":") or platform.machine()
    memory_kib = int((_field(Path("/proc/meminfo"), "MemTotal", ":") or "0 kB").split()[0])
    system = (_field(Path("/etc/os-release"), "PRETTY_NAME", "=") or "Linux").strip('"')
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory_kib / 2**20:.0f} GiB, {system}, "
        f"Linux {platform.release()}, Python {platform.python_version()}"
    )


def _field(path: Path, name: str, sign: str) -> str | None:
    for line in path.read_text().splitlines():
        key, found, value = line.partition(sign)
        if found and key.strip() == name:
            return value.strip()
    return None
