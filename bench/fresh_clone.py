"""(e) From a fresh clone, with empty caches, to a machine that is ready."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figures import Figure
from bench.plane import free_port
from fleet.settings import CHECKOUT

RUNS = 1
LONGEST_SECONDS = 1500


def measure() -> list[Figure]:
    """`git clone` and `./muster up --lab 1 --check`; Debian packages of the host are there."""
    seconds = tuple(_one() for _ in range(RUNS))
    note = "new .venv, new machine image; the host's Debian packages were there"
    return [Figure("fresh clone → ready, then stopped", seconds, "s", "≤ 300 s", 0, note)]


def _one() -> float:
    folder = Path(tempfile.mkdtemp(prefix="muster-clone-"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MUSTER_")}
    environment["MUSTER_CACHE_DIR"] = str(folder / "cache")
    ports = ["--api-port", str(free_port()), "--prefect-port", str(free_port())]
    began = time.perf_counter()
    try:
        subprocess.run(["git", "clone", "--quiet", CHECKOUT, folder / "muster"], check=True)
        subprocess.run(
            [folder / "muster" / "muster", "up", "--lab", "1", "--check", *ports],
            check=True,
            env=environment,
            timeout=LONGEST_SECONDS,
        )
        return time.perf_counter() - began
    finally:
        shutil.rmtree(folder, ignore_errors=True)
