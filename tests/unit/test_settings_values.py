"""Settings as values: where they come from, and how a child process gets the same ones."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from fleet.settings import Settings, load_settings

DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def test_a_child_has_the_very_same_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What a command was told counts in its children, also where muster.toml says otherwise."""
    config = tmp_path / "muster.toml"
    config.write_text('api_port = 9000\nmax_runs = 9\napi_keys = []\nrate_limit = "5/minute"\n')
    monkeypatch.setenv("MUSTER_CONFIG", str(config))
    told = load_settings(
        home=tmp_path / "a home, with blanks",
        api_port=8100,
        api_keys=(DIGEST,),
        prefect_auth_string="user:secret",
        ssh_proxies=("10.0.0.0/24=nsenter --net=/run/netns/x nc %h %p",),
    )
    for name, value in told.to_environment().items():
        monkeypatch.setenv(name, value)
    assert told == load_settings()


def test_options_beat_the_environment_and_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The strongest source that has a setting gives it."""
    config = tmp_path / "muster.toml"
    config.write_text("api_port = 9000\nprefect_port = 9001\nmax_runs = 9\n")
    monkeypatch.setenv("MUSTER_CONFIG", str(config))
    monkeypatch.setenv("MUSTER_API_PORT", "9100")
    monkeypatch.setenv("MUSTER_PREFECT_PORT", "9101")
    found = load_settings(api_port=9200, max_runs=None)
    assert (9200, 9101, 9) == (found.api_port, found.prefect_port, found.max_runs)


def test_a_key_itself_is_no_digest() -> None:
    """A key put where its digest belongs is refused, and the way to make a digest is told."""
    with pytest.raises(ValidationError, match="muster key new"):
        Settings(api_keys=("not-a-digest",))
