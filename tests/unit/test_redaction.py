"""Secrets do not reach a sink."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.redaction import MASK, Redactor


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("Authorization: Bearer abcdefghijklmnop", "abcdefghijklmnop"),
        ('{"password": "hunter2 with space"}', "hunter2"),
        ("db_password=hunter2", "hunter2"),
        ("token: s3cr3t-value", "s3cr3t-value"),
        ("postgresql://muster:hunter2@127.0.0.1/x", "hunter2"),
        (
            "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Blbn\n-----END OPENSSH PRIVATE KEY-----",
            "b3Blbn",
        ),
        ("-----BEGIN RSA PRIVATE KEY-----\nb3Blbn cut", "b3Blbn"),
    ],
)
def test_what_looks_secret_is_masked(text: str, gone: str) -> None:
    """Common shapes of a secret are masked even when the value is not known."""
    masked = Redactor()(text)
    assert gone not in masked
    assert MASK in masked


@pytest.mark.parametrize(
    "text", ["no secret here", "ok: [lab-1] => changed", "password: null", "the token was revoked"]
)
def test_plain_text_stays(text: str) -> None:
    """Ordinary lines come back as they were."""
    assert text == Redactor()(text)


@given(
    st.text("abcdefXYZ0123456789!@#%^*", min_size=4, max_size=40),
    st.text(max_size=30),
    st.text(max_size=30),
)
def test_known_values_never_pass(secret: str, before: str, after: str) -> None:
    """A known secret is gone wherever it stands."""
    assert secret not in Redactor([secret])(f"{before}{secret}{after}").replace(MASK, "")


def test_each_line_of_a_known_secret_is_masked() -> None:
    """A key of several lines is masked also when a log shows it line by line."""
    assert MASK == Redactor(["line-one\nline-two"])("line-two")
