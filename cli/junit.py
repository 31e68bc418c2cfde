"""Which tests pytest skipped and why, from its JUnit report."""

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET


@dataclass(frozen=True)
class Skip:
    """A skipped test, or a whole file of them, and the reason it gave."""

    test: str
    reason: str


def read_skips(report: Path) -> tuple[Skip, ...]:
    """The skipped tests of a report; none if pytest wrote no report."""
    if not report.exists():
        return ()
    # pytest wrote this file a moment ago: no hostile XML.
    root = ET.parse(report).getroot()  # noqa: S314
    return tuple(
        Skip(_name(case), skipped.get("message", ""))
        for case in root.iter("testcase")
        for skipped in case.iter("skipped")
    )


def _name(case: ET.Element) -> str:
    folder = case.get("classname", "").replace(".", "/").removeprefix("tests/")
    return f"{folder}::{case.get('name', '')}" if folder else case.get("name", "")
