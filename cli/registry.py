"""Settings and registry as the commands open them."""

from collections.abc import Iterator
from contextlib import contextmanager

from cli.claim import holder
from fleet.registry import Registry, open_registry
from fleet.settings import Settings, load_settings


def settings() -> Settings:
    """The settings of this command, from environment and muster.toml.

    Where `up` runs on this home, its addresses count: it may have got them as options.
    """
    loaded = load_settings()
    running = holder(loaded)
    if running is None:
        return loaded
    addresses = running.model_dump(include={"api_host", "api_port", "prefect_host", "prefect_port"})
    return load_settings(**addresses)


@contextmanager
def registry(loaded: Settings | None = None) -> Iterator[Registry]:
    """The registry of these settings, closed at the end. Raises SetupFailed."""
    opened = open_registry((loaded or settings()).registry_url)
    try:
        yield opened
    finally:
        opened.close()
