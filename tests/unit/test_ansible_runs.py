"""Around Ansible's process: its environment, its private folder, and the secrets' file."""

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet import processes
from fleet.errors import SetupFailed
from fleet.redaction import Redactor
from fleet.settings import Settings
from tasks.ansible import PlaybookRun, environment, private_parent
from tasks.secrets import forms_of, read_secrets


def test_nothing_of_ours_but_the_marks_reaches_ansible(tmp_path: Path) -> None:
    """No setting, no Prefect variable, no proxy or agent of whoever started the flow."""
    outer = {
        "HOME": "/root", "PATH": "/bin", "MUSTER_DATABASE_URL": "postgresql://u:p@h/d",
        "PREFECT_API_AUTH_STRING": "admin:pass", "SSH_AUTH_SOCK": "/x", "http_proxy": "http://p",
        "PYTHONPATH": "/x", "ANSIBLE_CONFIG": "/x", "EDITOR": "vi",
    }  # fmt: skip
    request = PlaybookRun(
        playbook=Path("/p.yaml"), limit=("a",), machine_ids=("m1", "m2"), flow_run_id="run"
    )
    made = environment(Settings(home=tmp_path), request, tmp_path / "private", outer)
    assert "run" == made[processes.RUN_MARK]
    assert "m1,m2" == made[processes.MACHINE_MARK]
    assert str(tmp_path) == made["MUSTER_HOME"]
    kept = {name for name in outer if made.get(name) == outer[name]}
    assert {"HOME"} == kept
    ours = {processes.RUN_MARK, processes.MACHINE_MARK, processes.HOME_MARK, "MUSTER_HOME"}
    assert ours == {n for n in made if n.startswith(("MUSTER_", "PREFECT_"))}
    assert made["PATH"].endswith(f"{os.pathsep}/bin")


def test_a_long_home_does_not_make_sockets_too_long(tmp_path: Path) -> None:
    """Private folders lie below the home, or in a short place of its own."""
    short = Settings(home=Path("/var/lib/muster"))
    assert Path("/var/lib/muster/runs") == private_parent(short)
    long = Settings(home=tmp_path / ("x" * 100))
    other = Settings(home=tmp_path / ("y" * 100))
    assert len(str(private_parent(long))) < 66
    assert private_parent(long) != private_parent(other)


def test_secrets_are_read_from_a_private_file(tmp_path: Path) -> None:
    """A mapping of names; no file, no secrets; an empty file, none either."""
    path = tmp_path / "secrets.yaml"
    assert {} == read_secrets(path)
    path.touch(mode=0o600)
    assert {} == read_secrets(path)
    path.write_text("token: abc\nnested: {list: [1, two]}\n")
    assert {"token": "abc", "nested": {"list": [1, "two"]}} == read_secrets(path)
    assert {"abc", "1", "two"} < set(forms_of(read_secrets(path)))


@given(st.text(min_size=4, alphabet=st.characters(codec="utf-8")))
def test_a_secret_is_masked_in_every_form(secret: str) -> None:
    """As it is, as JSON and Python print it, and in base64."""
    redact = Redactor(forms_of({"a": [{"b": secret}]}))
    printed = [json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret)]
    assert {"[redacted]"} == {redact(f"{form[1:-1]}") for form in printed}
    assert "[redacted]" == redact(base64.b64encode(secret.encode()).decode())


@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        ("token: hush", 0o640, "read by others"),
        ("token: hush", 0o604, "chmod 600"),
        ("token: [hush", 0o600, "cannot be read"),
        ("- hush", 0o600, "not a mapping"),
        ("1: hush", 0o600, "not a mapping"),
        ("!!python/object:os.system {x: hush}", 0o600, "cannot be read"),
    ],
)
def test_a_damaged_secrets_file_is_named_without_its_content(
    content: str, mode: int, words: str, tmp_path: Path
) -> None:
    """The error says what to do and quotes nothing."""
    path = tmp_path / "secrets.yaml"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(SetupFailed, match=words) as caught:
        read_secrets(path)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
