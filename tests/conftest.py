"""Fixtures of all tests: settings with a home of their own, a registry on each database."""

import os
import shutil
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from fleet.registry import Registry, open_registry
from fleet.settings import Settings


def free_port() -> int:
    """A loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A test sees none of the MUSTER_ and PREFECT_ settings of whoever runs it."""
    for name in list(os.environ):
        if name.startswith(("MUSTER_", "PREFECT_")) and name != "MUSTER_CACHE_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("MUSTER_CONFIG", str(tmp_path / "no-muster.toml"))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings with an empty home and ports of their own."""
    return Settings(home=tmp_path / "home", api_port=free_port(), prefect_port=free_port())


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'registry.db'}"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URL, without a database, of a real PostgreSQL on a loopback port."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not programs:
        pytest.skip("PostgreSQL is not installed (Debian package postgresql)")
    programs_dir = programs[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="muster-pg-"))
    as_postgres: list[str] = []
    if os.geteuid() == 0:
        as_postgres = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    data = str(folder / "data")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = [*as_postgres, str(programs_dir / "pg_ctl"), "-D", data, "-w"]
    _run([*as_postgres, str(programs_dir / "initdb"), "-D", data, "-A", "trust", "-U", "muster"])
    _run([*control, "-o", options, "-l", str(folder / "log"), "start"])
    try:
        yield f"postgresql+psycopg://muster@127.0.0.1:{port}"
    finally:
        _run([*control, "-m", "immediate", "stop"])
        shutil.rmtree(folder)


def _run(command: list[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def postgresql_url(postgresql_server: str) -> Iterator[str]:
    """The URL of an empty database of one test's own."""
    name = f"test_{uuid.uuid4().hex}"
    admin = create_engine(f"{postgresql_server}/postgres", isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield f"{postgresql_server}/{name}"
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture
def make_registry() -> Iterator[Callable[[str], Registry]]:
    """Opens registries and closes them at the end."""
    opened: list[Registry] = []

    def make(url: str) -> Registry:
        opened.append(open_registry(url))
        return opened[-1]

    yield make
    for registry in opened:
        registry.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, make_registry: Callable[[str], Registry]) -> Registry:
    """An empty registry, once on SQLite and once on PostgreSQL."""
    return make_registry(request.getfixturevalue(f"{request.param}_url"))
