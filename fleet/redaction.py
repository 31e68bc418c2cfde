"""Secrets are taken out of text before it reaches a log, an artifact, TODO.md or an error body."""

import re
from collections.abc import Iterable

MASK = "[redacted]"

_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_NAMED = re.compile(
    r"""(?ix)
    (?P<name> ["']? [\w.-]* (?:password|passwd|passphrase|secret|token|api[_-]?key) [\w.-]* ["']?)
    (?P<sign> \s* [:=] \s*)
    (?P<value> "(?:[^"\\]|\\.)*" | '(?:[^'\\]|\\.)*' | [^\s,;}\]]+ )
    """
)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
# Shorter values would blank out ordinary words.
_SHORTEST_SECRET = 4


class Redactor:
    """Replaces known secret values, and whatever looks like one, by a mask."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        lines = {line for secret in secrets for line in (secret, *secret.splitlines())}
        known = sorted((s for s in lines if len(s) >= _SHORTEST_SECRET), key=len, reverse=True)
        self._known = re.compile("|".join(map(re.escape, known))) if known else None

    def __call__(self, text: str) -> str:
        if self._known is not None:
            text = self._known.sub(MASK, text)
        text = _PRIVATE_KEY.sub(MASK, text)
        text = _BEARER.sub(rf"\1 {MASK}", text)
        text = _URL_CREDENTIALS.sub(MASK, text)
        return _NAMED.sub(_mask_value, text)


def _mask_value(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "\"'" else ""
    if value.strip("\"'") in {"", "None", "null", "true", "false", "yes", "no", MASK, "[redacted"}:
        return match[0]
    return f"{match['name']}{match['sign']}{quote}{MASK}{quote}"
