"""Fixtures of the end-to-end tests: Muster as its users run it."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fleet.settings import Settings
from tests.conftest import free_port
from tests.e2e.stand import Stand

StartStand = Callable[..., Stand]


@pytest.fixture(scope="module")
def start_stand() -> Iterator[StartStand]:
    """Makes stands that have not been started; keyword arguments are settings."""
    if os.geteuid() != 0:
        pytest.skip("the laboratory needs root")
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name in [n for n in os.environ if n.startswith(("MUSTER_", "PREFECT_"))]:
            if name != "MUSTER_CACHE_DIR":
                patch.delenv(name)
        patch.setenv("MUSTER_CONFIG", os.devnull)

        def make(count: int, **values: Any) -> Stand:
            return stack.enter_context(_stand(count, values))

        yield make


@contextmanager
def _stand(count: int, values: dict[str, Any]) -> Iterator[Stand]:
    # Unix sockets live below it: a short path.
    home = Path(tempfile.mkdtemp(prefix="muster-e2e-"))
    ports = {"api_port": free_port(), "prefect_port": free_port()}
    stand = Stand(Settings(home=home, **ports, **values), count)
    try:
        yield stand
    finally:
        stand.close()
        shutil.rmtree(home, ignore_errors=True)
