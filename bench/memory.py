"""(d) The control plane's memory at rest."""

import time

import psutil

from bench.figures import Figure
from bench.plane import Plane
from fleet import processes

REST_SECONDS = 30
RUNS = 3


def measure(plane: Plane) -> list[Figure]:
    """The sum over all its processes: PSS counts shared pages once, RSS once a process."""
    proportional, resident, count = [], [], 0
    for _ in range(RUNS):
        time.sleep(REST_SECONDS)
        own = [
            psutil.Process(plane.up),
            *processes.marked(processes.HOME_MARK, str(plane.settings.home)),
        ]
        sizes = [process.memory_full_info() for process in own]
        count = len(own)
        proportional.append(sum(size.pss for size in sizes) / 2**20)
        resident.append(sum(size.rss for size in sizes) / 2**20)
    note = f"{count} processes"
    return [
        Figure("memory at rest (PSS)", tuple(proportional), "MiB", "≤ 600 MB", 0, note),
        Figure("memory at rest (RSS)", tuple(resident), "MiB", "≤ 600 MB", 0, note),
    ]
