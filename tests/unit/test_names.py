"""What may be a machine's name."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import InvalidName
from fleet.names import RESERVED_NAMES, check_name
from fleet.settings import CHECKOUT


@pytest.mark.parametrize("name", ["a", "node-3", "x" * 63, "0a", "a--b"])
def test_rfc_1123_labels_pass(name: str) -> None:
    """A lower-case label comes back as it is."""
    assert name == check_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "", " ", "A", "-a", "a-", "a_b", "a.b", "x" * 64, "12", "node\n", "node\r\n", "nöde",
        "../x", "a/b", "{{ 7*7 }}", "$(id)", "a b", "a;b", "all", "ungrouped", "localhost",
        "machines", "\x00", "a" * 10_000,
    ],
)  # fmt: skip
def test_everything_else_is_refused(name: str) -> None:
    """A name that could mean something to a shell, a path, YAML or Ansible is an error."""
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    assert len(caught.value.detail) < 200


@given(st.text(max_size=80))
def test_what_passes_is_inert(text: str) -> None:
    """Whatever passes consists of a-z, 0-9 and hyphens alone."""
    try:
        name = check_name(text)
    except InvalidName:
        return
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert name == text


def test_every_group_of_the_inventory_is_reserved() -> None:
    """No machine can take the name of a group of inventory/static.yaml."""

    def groups(tree: dict[str, object]) -> set[str]:
        found: set[str] = set()
        for name, body in tree.items():
            found.add(name)
            children = body.get("children") if isinstance(body, dict) else None
            found |= groups(children) if isinstance(children, dict) else set()
        return found

    static = yaml.safe_load((CHECKOUT / "inventory" / "static.yaml").read_text())
    assert set() == groups(static) - RESERVED_NAMES
