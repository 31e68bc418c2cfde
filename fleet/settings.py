"""Every setting of Muster as one typed value.

A setting comes, strongest first, from a command's option, from the environment
(`MUSTER_<NAME>`), from `muster.toml` (in the checkout, or where `MUSTER_CONFIG` points),
or from its default. docs/settings.md describes each; a test holds the two together.
"""

import os
import tomllib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from fleet.errors import SetupFailed

CHECKOUT = Path(__file__).resolve().parent.parent

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class Settings(BaseSettings):
    """All settings. Times are in seconds, sizes in bytes, paths absolute once loaded."""

    model_config = SettingsConfigDict(env_prefix="MUSTER_", extra="ignore", frozen=True)

    # where things are kept
    home: Path = CHECKOUT / "var"
    cache_dir: Path = Path.home() / ".cache" / "muster"
    todo_path: Path | None = None
    database_url: SecretStr | None = None

    # the API
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8100, ge=1, le=65535)
    api_namespace_binds: CommaSeparated = ()
    api_keys: CommaSeparated = ()
    public_url: str | None = None
    trusted_proxies: CommaSeparated = ()
    rate_limit: str = "120/minute"
    body_limit: int = Field(default=65_536, ge=1024)
    token_life: int = Field(default=7 * 86_400, ge=60)

    # handing jobs to Prefect
    outbox_rate: float = Field(default=5.0, gt=0)
    reconcile_every: float = Field(default=20.0, gt=0)
    lost_run_grace: float = Field(default=30.0, gt=0)

    # Prefect
    prefect_host: str = "127.0.0.1"
    prefect_port: int = Field(default=4200, ge=1, le=65535)
    prefect_auth_string: SecretStr | None = None
    prefect_database_url: SecretStr | None = None
    work_pool: str = "provisioning"
    max_runs: int = Field(default=4, ge=1)

    # configuring machines
    playbook: Path = CHECKOUT / "playbook.yaml"
    run_timeout: float = Field(default=3600.0, gt=0)
    lock_timeout: float = Field(default=1800.0, gt=0)
    connect_timeout: int = Field(default=10, ge=1)
    transient_retries: int = Field(default=3, ge=0)
    transient_retry_delay: float = Field(default=10.0, ge=0)
    ssh_user: str = "root"
    ssh_key_path: Path | None = None
    ssh_proxies: CommaSeparated = ()
    secrets_path: Path | None = None

    # the laboratory
    lab_subnet: str = "10.213.0.0/24"
    debian_mirror: str | None = None
    debian_security_mirror: str | None = None

    # starting and stopping
    start_timeout: float = Field(default=120.0, gt=0)
    ready_timeout: float = Field(default=900.0, gt=0)

    @field_validator(
        "api_namespace_binds", "api_keys", "trusted_proxies", "ssh_proxies", mode="before"
    )
    @classmethod
    def _split_commas(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("api_keys")
    @classmethod
    def _digests_only(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        digests = tuple(digest.lower() for digest in value)
        if any(len(d) != 64 or set(d) - set("0123456789abcdef") for d in digests):  # noqa: PLR2004
            raise ValueError(
                "each entry must be the SHA-256 of a key in hexadecimal (64 digits); "
                "`./muster key new` makes a key and prints its digest"
            )
        return digests

    @field_validator("home", "cache_dir", "todo_path", "playbook", "ssh_key_path", "secrets_path")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else Path(os.path.abspath(value.expanduser()))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del dotenv_settings, file_secret_settings
        config = Path(os.environ.get("MUSTER_CONFIG", CHECKOUT / "muster.toml"))
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, config)

    @cached_property
    def registry_url(self) -> str:
        """SQLAlchemy URL of the registry; SQLite under `home` unless a setting names another."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.home / 'registry.db'}"

    @cached_property
    def todo_file(self) -> Path:
        return self.todo_path or self.home / "TODO.md"

    @cached_property
    def ssh_key_file(self) -> Path:
        """Private key that Ansible and ssh use; its `.pub` stands beside it."""
        return self.ssh_key_path or self.home / "keys" / "operator_ed25519"

    @cached_property
    def secrets_file(self) -> Path:
        """Hand-kept YAML of secret Ansible variables (0600); may be absent."""
        return self.secrets_path or self.home / "secrets.yaml"

    @cached_property
    def inventory_dir(self) -> Path:
        return self.home / "inventory"

    @cached_property
    def known_hosts_dir(self) -> Path:
        return self.home / "known_hosts"

    @cached_property
    def locks_dir(self) -> Path:
        return self.home / "locks"

    @cached_property
    def logs_dir(self) -> Path:
        return self.home / "logs"

    @cached_property
    def api_url(self) -> str:
        """Base URL of the API as machines and people reach it, without a trailing slash."""
        return (self.public_url or f"http://{self.api_host}:{self.api_port}").rstrip("/")

    @cached_property
    def prefect_url(self) -> str:
        """Base URL of Prefect's UI; its API is below `/api`."""
        return f"http://{self.prefect_host}:{self.prefect_port}"

    def flow_run_url(self, flow_run_id: str) -> str:
        return f"{self.prefect_url}/runs/flow-run/{flow_run_id}"

    def to_environment(self) -> dict[str, str]:
        """The settings as variables, so that a child process has the very same ones."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {
            f"MUSTER_{name.upper()}": _as_text(value)
            for name, value in values.items()
            if value is not None
        }


def _as_text(value: Any) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value)


def load_settings(**overrides: Any) -> Settings:
    """Read the settings once, at the edge of a program; `None` overrides are left out.

    Raises pydantic.ValidationError naming each setting that does not fit, and SetupFailed when
    muster.toml cannot be read.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SetupFailed(
            f"muster.toml cannot be read: {error}",
            remedy="Mend it, or name another file in MUSTER_CONFIG.",
        ) from error
