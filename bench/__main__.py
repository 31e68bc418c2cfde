"""`./muster bench`: measure, and print the table with the machine's description."""

import argparse
from collections.abc import Callable
from datetime import UTC, datetime

from bench import fresh_clone, latency, memory, playbook_run, throughput
from bench.figures import Figure, markdown
from bench.host import describe
from bench.plane import control_plane

# Nobody answers on loopback's port 22 as these machines: one quick refusal ends each run.
_NO_RETRY = {"MUSTER_TRANSIENT_RETRIES": "0", "MUSTER_CONNECT_TIMEOUT": "2"}


def _rest() -> list[Figure]:
    with control_plane() as plane:
        return memory.measure(plane)


def _latency() -> list[Figure]:
    with control_plane(**_NO_RETRY) as plane:
        return latency.measure(plane)


def _throughput() -> list[Figure]:
    with control_plane(**_NO_RETRY) as plane:
        return throughput.measure(plane)


def _playbook() -> list[Figure]:
    with control_plane("--lab", "1") as plane:
        return playbook_run.measure(plane)


BENCHMARKS: dict[str, Callable[[], list[Figure]]] = {
    "latency": _latency,
    "throughput": _throughput,
    "playbook": _playbook,
    "memory": _rest,
    "clone": fresh_clone.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="muster bench", description=__doc__)
    parser.add_argument("only", nargs="*", choices=[*BENCHMARKS, []], help="some, not all")
    chosen = parser.parse_args().only or list(BENCHMARKS)
    figures: list[Figure] = []
    for name in chosen:
        print(f"measuring: {name}", flush=True)
        figures += BENCHMARKS[name]()
    print(f"\n{datetime.now(UTC):%F}, on: {describe()}\n\n{markdown(figures)}")


if __name__ == "__main__":
    main()
