"""Building the base: what a broken mirror and a killed build leave."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fleet.errors import SetupFailed
from fleet.settings import CHECKOUT, Settings
from lab.image import ensure_base
from lab.packages import missing_packages
from lab.processes import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def empty_cache(tmp_path: Path) -> Settings:
    """Settings whose cache holds no base yet."""
    if os.geteuid() != 0:
        pytest.skip("mmdebstrap needs root here")
    if missing_packages():
        pytest.skip(f"Debian packages are missing: {' '.join(missing_packages())}")
    return Settings(home=tmp_path / "home", cache_dir=tmp_path / "cache")


def builders(settings: Settings) -> list[int]:
    """The processes that work on a base in this cache."""
    cache = str(settings.cache_dir)
    found = psutil.process_iter(["cmdline"])
    return [p.pid for p in found if any(cache in word for word in p.info["cmdline"] or [])]


def test_a_mirror_that_is_away_is_named_and_leaves_nothing(empty_cache: Settings) -> None:
    """The error holds mmdebstrap's words; the cache holds no half of a base."""
    settings = empty_cache.model_copy(
        update={
            "debian_mirror": "http://127.0.0.1:9/debian",
            "debian_security_mirror": "http://127.0.0.1:9/security",
        }
    )
    steps: list[str] = []
    with pytest.raises(SetupFailed, match=r"127\.0\.0\.1:9") as failure:
        ensure_base(settings, steps.append)
    assert "MUSTER_DEBIAN_MIRROR" in failure.value.remedy
    assert "running apt-get update" in steps
    assert [".build.lock"] == [path.name for path in (settings.cache_dir / "lab").iterdir()]


def test_a_killed_build_ends_whole_and_the_next_begins_anew(empty_cache: Settings) -> None:
    """No process of the build outlives the one that asked for it, and no half is taken for a
    base."""
    images = empty_cache.cache_dir / "lab"
    script = (
        "from fleet.settings import load_settings\nfrom lab.image import ensure_base\n"
        "ensure_base(load_settings(), lambda step: print(step, flush=True))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        env=os.environ | empty_cache.to_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as build:
        assert build.stdout
        for line in build.stdout:
            if line.startswith("downloading"):
                break
        assert len(builders(empty_cache)) > 0
        build.kill()
    wait_until(lambda: builders(empty_cache) == [], what="the build's end", timeout=10)
    assert [] == [path.name for path in images.glob("debian-*")]
    assert 1 == len(list(images.glob(".building-*")))
    broken = empty_cache.model_copy(update={"debian_mirror": "http://127.0.0.1:9/debian"})
    with pytest.raises(SetupFailed):
        ensure_base(broken)
    assert [] == list(images.glob(".building-*"))
