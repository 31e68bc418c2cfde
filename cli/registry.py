"""Settings and registry as the commands open them."""

from collections.abc import Iterator
from contextlib import contextmanager

from fleet.registry import Registry, open_registry
from fleet.settings import Settings, load_settings


def settings() -> Settings:
    """The settings of this command, from environment and muster.toml."""
    return load_settings()


@contextmanager
def registry(loaded: Settings | None = None) -> Iterator[Registry]:
    """The registry of these settings, closed at the end. Raises SetupFailed."""
    opened = open_registry((loaded or settings()).registry_url)
    try:
        yield opened
    finally:
        opened.close()
