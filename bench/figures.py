"""A measured figure, and how a table of them looks."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row: the samples' median and range in `unit`, beside the goal in words."""

    what: str
    samples: tuple[float, ...]
    unit: str
    goal: str
    digits: int = 2
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.samples)


def percentile(samples: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` (0 to 1) of all samples do not exceed."""
    ordered = sorted(samples)
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[int(rank) - 1]


def markdown(figures: Sequence[Figure]) -> str:
    """The figures as a Markdown table."""
    lines = [
        "| what | median | min – max | runs | goal | remarks |",
        "|---|---:|---:|---:|---|---|",
    ]
    for figure in figures:
        low, high = min(figure.samples), max(figure.samples)
        digits = figure.digits
        lines.append(
            f"| {figure.what} | {figure.median:.{digits}f} {figure.unit} "
            f"| {low:.{digits}f} – {high:.{digits}f} | {len(figure.samples)} "
            f"| {figure.goal} | {figure.note} |"
        )
    return "\n".join(lines)
