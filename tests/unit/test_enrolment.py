"""Which call home counts."""

from datetime import UTC, datetime, timedelta

import pytest

from fleet.enrolment import TokenFacts, judge
from fleet.errors import (
    HostKeysChanged,
    MusterError,
    TokenExpired,
    TokenRevoked,
    TokenSpent,
)

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LATER, EARLIER = NOW + timedelta(hours=1), NOW - timedelta(hours=1)


@pytest.mark.parametrize(
    ("expires_at", "spent_at", "revoked_at", "bound", "expected"),
    [
        (LATER, None, None, None, None),
        (LATER, None, None, ("k",), None),
        (LATER, None, None, ("other",), HostKeysChanged),
        (LATER, None, None, ("k", "more"), HostKeysChanged),
        (NOW, None, None, None, TokenExpired),
        (EARLIER, None, None, ("other",), TokenExpired),
        (LATER, EARLIER, None, ("k",), TokenSpent),
        (EARLIER, EARLIER, None, ("k",), TokenSpent),
        (LATER, None, EARLIER, ("k",), TokenRevoked),
        (LATER, EARLIER, EARLIER, ("k",), TokenRevoked),
    ],
)
def test_judge(
    expires_at: datetime,
    spent_at: datetime | None,
    revoked_at: datetime | None,
    bound: tuple[str, ...] | None,
    expected: type[MusterError] | None,
) -> None:
    """A token counts until it is revoked, spent or expired, for the keys it first came with."""
    facts = TokenFacts("node-1", expires_at, spent_at, revoked_at, bound)
    verdict = judge(facts, ("k",), NOW)
    assert expected is (None if verdict is None else type(verdict))


@pytest.mark.parametrize("error", [TokenExpired, TokenRevoked, TokenSpent, HostKeysChanged])
def test_every_refusal_says_what_to_do(error: type[MusterError]) -> None:
    """An operator reads which machine it is about and the command to give."""
    facts = TokenFacts(
        "node-1",
        NOW if error is TokenExpired else LATER,
        EARLIER if error is TokenSpent else None,
        EARLIER if error is TokenRevoked else None,
        ("other",),
    )
    verdict = judge(facts, ("k",), NOW)
    assert isinstance(verdict, error)
    assert "node-1" in verdict.detail
    assert "muster machine token node-1" in verdict.remedy
