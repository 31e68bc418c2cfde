"""(b) A thousand machines call home, a hundred at a time."""

import asyncio

from bench.callers import burst, enrol
from bench.figures import Figure, percentile
from bench.plane import Plane
from fleet import jobs

MACHINES = 1000
AT_ONCE = 100
RUNS = 3


def measure(plane: Plane) -> list[Figure]:
    """Bursts with the whole control plane running; lost is what was accepted and has no job."""
    rates, slowest, lost, refused = [], [], [], []
    for number in range(RUNS):
        callers = enrol(plane, f"burst-{number}", MACHINES)
        answers, seconds = asyncio.run(burst(callers, plane.settings.api_port, AT_ONCE))
        accepted = sum(answer.status == 202 for answer in answers)
        rates.append(accepted / seconds)
        slowest.append(percentile([answer.seconds for answer in answers], 0.99))
        lost.append(float(accepted - _jobs_of(plane, {caller.name for caller in callers})))
        refused.append(float(MACHINES - accepted))
    load = f"{MACHINES} machines, {AT_ONCE} at a time"
    return [
        Figure("call homes accepted per second", tuple(rates), "/s", "≥ 240", 0, load),
        Figure("slowest hundredth (p99)", tuple(slowest), "s", "≤ 1 s", 2, load),
        Figure("accepted and lost", tuple(lost), "", "0", 0, "no job in the registry"),
        Figure("not accepted", tuple(refused), "", "0", 0, "any answer but 202"),
    ]


def _jobs_of(plane: Plane, names: set[str]) -> int:
    with plane.registry.read() as session:
        found = jobs.listing(session, limit=MACHINES * RUNS * 2)
    return sum(job.machine_name in names for job in found)
