"""docs/settings.md and fleet/settings.py hold each other to the truth."""

import re

import pytest

from fleet.settings import CHECKOUT, Settings

ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| (?P<default>.+?) \| (?P<meaning>.+) \| (?P<example>.+) \|$"
)
DOCUMENT = (CHECKOUT / "docs" / "settings.md").read_text(encoding="utf-8")
ROWS = {row["name"]: row for row in map(ROW.match, DOCUMENT.splitlines()) if row}


def test_every_setting_is_documented_and_no_other():
    """The document has a row for each setting, and none for what is no setting."""
    assert set(Settings.model_fields) == set(ROWS)


def test_rows_stand_in_the_order_of_the_class():
    """The document can be read beside the class."""
    assert list(Settings.model_fields) == list(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_the_documented_default_is_the_true_one(name: str):
    """A default that is a plain value stands in its row as it is."""
    default = Settings.model_fields[name].default
    if isinstance(default, str | int | float):
        shown = default if isinstance(default, str) else f"{default:.10g}"
        assert ROWS[name]["default"].startswith(f"`{shown}`")
    elif default == ():
        assert "none" == ROWS[name]["default"]


@pytest.mark.parametrize("name", ROWS)
def test_every_row_has_meaning_and_example(name: str):
    """No cell of a row is left empty."""
    assert all(cell.strip() for cell in ROWS[name].groups())
