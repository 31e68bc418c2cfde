"""Which stages `./muster test` runs, and its verdict."""

from pathlib import Path

import pytest

from cli.junit import Skip, read_skips
from cli.stages import NAMES, Outcome, Stage, choose, make_stages, verdict

UNIT = Stage("unit", ("pytest",), "unit")
SKIP = Skip("unit/test_x::test_y", "needs root")


@pytest.mark.parametrize(
    ("arguments", "names", "rest"),
    [
        ([], NAMES, ()),
        (["unit"], ("unit",), ()),
        (["lint", "unit"], ("lint", "unit"), ()),
        (["unit", "-k", "names"], ("unit",), ("-k", "names")),
        (["-x"], NAMES, ("-x",)),
        (["e2e", "-k", "unit"], ("e2e",), ("-k", "unit")),
    ],
)
def test_named_stages_come_first(
    arguments: list[str], names: tuple[str, ...], rest: tuple[str, ...]
):
    """What follows the names of stages is pytest's."""
    assert (names, rest) == choose(arguments)


def test_everything_is_run_in_order():
    """Lint comes before tests, and quick tests before slow ones."""
    names = [stage.name for stage in make_stages(NAMES, ())]
    assert [
        "ruff check", "ruff format", "pyright", "import-linter", "ansible-lint",
        "unit", "integration", "e2e",
    ] == names  # fmt: skip


def test_arguments_go_to_pytest_alone():
    """A linter is not given pytest's options."""
    stages = make_stages(("lint", "unit"), ("-x",))
    assert ["unit"] == [stage.name for stage in stages if "-x" in stage.command]


@pytest.mark.parametrize(
    ("outcomes", "ci", "passed"),
    [
        ([Outcome(UNIT, True, 1.0)], False, True),
        ([Outcome(UNIT, True, 1.0)], True, True),
        ([Outcome(UNIT, True, 1.0, (SKIP,))], False, True),
        ([Outcome(UNIT, True, 1.0, (SKIP,))], True, False),
        ([Outcome(UNIT, False, 1.0)], False, False),
        ([Outcome(UNIT, False, 1.0), Outcome(UNIT, True, 1.0)], True, False),
    ],
)
def test_a_skip_is_a_failure_in_ci_alone(outcomes: list[Outcome], ci: bool, passed: bool):
    """A failure is one everywhere."""
    assert passed is verdict(outcomes, ci=ci)[0]


def test_skips_are_read_with_their_reasons(tmp_path: Path):
    """Names and reasons of skipped tests come from pytest's report; passed ones are left out."""
    report = tmp_path / "junit.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.unit.test_x" name="test_y">'
        '<skipped message="needs root">where</skipped></testcase>'
        '<testcase classname="tests.unit.test_x" name="test_z"/></testsuite></testsuites>'
    )
    assert (SKIP,) == read_skips(report)
    assert () == read_skips(tmp_path / "none.xml")
