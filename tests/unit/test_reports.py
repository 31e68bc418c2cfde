"""What a machine may say of itself."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fleet.reports import CallHome, parse_host_key

BOOT_ID = "7f0c2c0e-5a5a-4c1e-9a57-8f3d4c1b2a90"


def host_key(kind: str = "ssh-ed25519", seed: bytes = b"k" * 32) -> str:
    blob = len(kind).to_bytes(4, "big") + kind.encode() + len(seed).to_bytes(4, "big") + seed
    return f"{kind} {base64.b64encode(blob).decode()}"


def report(**changes: Any) -> CallHome:
    body = {"hostname": "node-1", "boot_id": BOOT_ID, "ssh_host_keys": [host_key()]}
    return CallHome.model_validate(body | changes)


def test_keys_lose_comment_and_order() -> None:
    """Two calls with the same keys compare equal, whatever the order and the comments."""
    one = report(ssh_host_keys=[f"{host_key()} root@a", host_key("ssh-rsa")])
    two = report(ssh_host_keys=[host_key("ssh-rsa"), host_key(), host_key()])
    assert one.host_keys == two.host_keys


@pytest.mark.parametrize(
    "key",
    [
        "", "ssh-ed25519", "ssh-ed25519 ", "ssh-ed25519 !!!", "ssh-dss AAAA", "rsa " + "A" * 100,
        host_key("ssh-rsa").replace("ssh-rsa", "ssh-ed25519", 1), host_key() + "\nssh-rsa AAAA",
        "@cert-authority * " + host_key(), "* " + host_key(), "ssh-ed25519 AAAA",
    ],
)  # fmt: skip
def test_a_damaged_key_is_refused(key: str) -> None:
    """A key of another type than it says, with line breaks or without a blob, is an error."""
    with pytest.raises(ValueError, match="key"):
        parse_host_key(key)


@pytest.mark.parametrize(
    "changes",
    [
        {"hostname": "all"}, {"hostname": "{{ x }}"}, {"hostname": "a\nb"}, {"boot_id": "../../x"},
        {"boot_id": "7f0c2c0e"}, {"address": "{{ lookup('pipe','id') }}"},
        {"address": "10.0.0.256"},
        {"address": "fe80::1%eth0"}, {"mac": "zz:00:00:00:00:00"}, {"mac": "52:54:00:12:34"},
        {"ssh_host_keys": []}, {"ssh_host_keys": [host_key()] * 17}, {"unknown": 1},
        {"hardware": {"a": {"b": {"c": {"d": {"e": {"f": {"g": 1}}}}}}}},
    ],
)  # fmt: skip
def test_a_bad_field_is_refused(changes: dict[str, Any]) -> None:
    """Each field is parsed strictly."""
    with pytest.raises(ValidationError):
        report(**changes)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_hardware_becomes_plain_data(hardware: dict[str, Any]) -> None:
    """What is kept can be stored as strict UTF-8 JSON and holds no control character."""
    try:
        kept = report(hardware=hardware).hardware
    except ValidationError:
        return
    text = json.dumps(kept, allow_nan=False, ensure_ascii=False)
    text.encode("utf-8")
    assert "\\u00" not in text
    assert "\x7f" not in text
