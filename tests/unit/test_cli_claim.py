"""Who holds a home, and whether the one before came to its end."""

import os

from cli.claim import claim, holder
from cli.preflight import make_folders
from fleet.settings import Settings


def test_a_home_is_held_while_up_runs(settings: Settings):
    """The holder is known with its ports while it runs, and nobody afterwards."""
    make_folders(settings)
    assert holder(settings) is None
    with claim(settings):
        found = holder(settings)
        assert found is not None
        assert (os.getpid(), settings.api_port) == (found.pid, found.api_port)
    assert holder(settings) is None


def test_a_crash_is_told_from_an_end(settings: Settings):
    """What a killed `up` wrote is still there; what an ended one wrote is not."""
    make_folders(settings)
    with claim(settings) as crashed:
        assert not crashed
        record = (settings.home / "run" / "up.json").read_text()
    with claim(settings) as crashed:
        assert not crashed
    (settings.home / "run" / "up.json").write_text(record)
    with claim(settings) as crashed:
        assert crashed
