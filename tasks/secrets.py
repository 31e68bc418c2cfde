"""The operator's secret Ansible variables: one YAML file that nobody else can read."""

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fleet.errors import SetupFailed


def read_secrets(path: Path) -> dict[str, Any]:
    """The variables in the file; none when there is no file.

    Raises SetupFailed: others can read it, or it is not a mapping of names.
    """
    try:
        with path.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(path.stat().st_mode)
            if mode & 0o077:
                raise SetupFailed(
                    f"{path} can be read by others (mode {mode:04o}).",
                    remedy=f"Run: chmod 600 {path}",
                )
            content = yaml.safe_load(file)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        # The parser quotes lines of the file, which are secrets: only the kind is told.
        raise SetupFailed(
            f"{path} cannot be read: {type(error).__name__}.",
            remedy="It must be a YAML mapping of variable names to values.",
        ) from None
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise SetupFailed(
            f"{path} is not a mapping of variable names to values.",
            remedy="Write one `name: value` per line.",
        )
    return content


def forms_of(secrets: Any) -> Iterator[str]:
    """Every text and number among the secrets, in each form in which it may be printed."""
    for value in _values(secrets):
        quoted = {repr(value), json.dumps(value), json.dumps(value, ensure_ascii=False)}
        yield from {value, *(form[1:-1] for form in quoted)}
        yield base64.b64encode(value.encode()).decode()


def _values(secrets: Any) -> Iterator[str]:
    if isinstance(secrets, dict):
        for value in secrets.values():
            yield from _values(value)
    elif isinstance(secrets, list):
        for value in secrets:
            yield from _values(value)
    elif isinstance(secrets, (str, int, float)) and not isinstance(secrets, bool):
        yield str(secrets)
