"""The registry: one database of machines, tokens, jobs and events.

The rules are functions of a session (`fleet.machines`, `fleet.enrolment`, `fleet.jobs`); this
file opens the database, brings its schema up to date and draws the transactions.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from sqlalchemy import Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.orm import Session

from fleet.errors import SetupFailed

if TYPE_CHECKING:
    from alembic.config import Config

MIGRATIONS = Path(__file__).resolve().parent / "migrations"
BUSY_TIMEOUT_MS = 30_000


class Registry:
    """An open registry. `write()` and `read()` give a session for one transaction each."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._is_sqlite = engine.dialect.name == "sqlite"
        # SQLite has one writer. Within a process the lock hands the turn on fairly, where
        # SQLite's own busy handler would sleep and starve some of many threads.
        self._turn = threading.Lock()

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A transaction that commits on leaving and rolls back on an exception."""
        if not self._is_sqlite:
            with Session(self.engine, expire_on_commit=False) as session, session.begin():
                yield session
            return
        with self._turn, Session(self.engine, expire_on_commit=False) as session, session.begin():
            session.execute(text("BEGIN IMMEDIATE"))
            yield session

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session for reading; nothing done in it is kept."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    def check(self) -> None:
        """Raise sqlalchemy.exc.SQLAlchemyError unless the database answers."""
        with self.engine.connect() as connection:
            connection.execute(text("SELECT 1"))

    def close(self) -> None:
        self.engine.dispose()


def open_registry(url: str) -> Registry:
    """Open the registry at SQLAlchemy URL `url`, migrating its schema to this version.

    Raises SetupFailed when the database cannot be opened or is newer than this Muster.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        engine = _sqlite_engine(url, parsed.database)
    else:
        engine = create_engine(url, pool_size=10, max_overflow=30, pool_pre_ping=True)
    try:
        _migrate(engine, parsed.database)
    except SetupFailed:
        engine.dispose()
        raise
    except Exception as error:
        engine.dispose()
        raise SetupFailed(
            f"The registry at {parsed.render_as_string()} cannot be opened: "
            f"{type(error).__name__}: {str(error).splitlines()[0]}",
            remedy="Check MUSTER_DATABASE_URL and that the database runs and is writable.",
        ) from error
    return Registry(engine)


def _sqlite_engine(url: str, database: str | None) -> Engine:
    if database:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"check_same_thread": False})

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # BEGIN is ours (IMMEDIATE for writers), so the driver must not start its own.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        # FULL: what was answered with 202 is on the disk, also after a power cut.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    return engine


def newest_revision() -> str:
    """The revision of the newest migration; its file's name begins with it."""
    return max(path.stem.partition("_")[0] for path in (MIGRATIONS / "versions").glob("[0-9]*.py"))


def _migrate(engine: Engine, database: str | None) -> None:
    if _revision(engine) == newest_revision():
        return
    # Its import is slow, and every flow run opens a registry that is up to date.
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    if engine.dialect.name == "sqlite" and database:
        with FileLock(f"{database}.migrate.lock", timeout=60), engine.begin() as connection:
            _upgrade(config, connection)
        return
    with engine.begin() as connection:
        # Two programs may start at once: the advisory lock lets one of them migrate.
        connection.execute(text("SELECT pg_advisory_xact_lock(1297437524)"))
        _upgrade(config, connection)


def _revision(engine: Engine) -> str | None:
    """The revision of the database's schema; None for a database that is empty."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.scalar(text("SELECT version_num FROM alembic_version"))


def _upgrade(config: "Config", connection: Connection) -> None:
    from alembic import command  # noqa: PLC0415

    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except Exception as error:
        if "Can't locate revision" in str(error):
            raise SetupFailed(
                "The registry was made by a newer Muster.",
                remedy="Update this checkout, or name another MUSTER_HOME.",
            ) from error
        raise
