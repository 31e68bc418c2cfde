"""What a machine says of itself when it calls home, checked at the door.

Every field is remote text: it is bounded, parsed strictly, and kept as data.
"""

import base64
import binascii
import ipaddress
import math
import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from fleet.errors import InvalidName
from fleet.names import check_name

MAX_HOST_KEYS = 16
HOST_KEY_TYPES = frozenset(
    {
        "ssh-ed25519",
        "ssh-rsa",
        "ecdsa-sha2-nistp256",
        "ecdsa-sha2-nistp384",
        "ecdsa-sha2-nistp521",
    }
)
_BOOT_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_MAX_DEPTH = 6
_MAX_TEXT = 512


def parse_host_key(text: str) -> str:
    """Return a public host key as `type base64`, without its comment.

    Raises ValueError: unknown type, bad base64, or a blob of another type than it says.
    """
    parts = text.split(" ")
    if len(parts) < 2 or parts[0] not in HOST_KEY_TYPES or _CONTROL.search(text):  # noqa: PLR2004
        raise ValueError("not an SSH public host key (type, then base64)")
    kind, blob = parts[0], parts[1]
    try:
        raw = base64.b64decode(blob, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the key's base64 is damaged") from error
    length = int.from_bytes(raw[:4], "big")
    if raw[4 : 4 + length] != kind.encode() or len(raw) <= 4 + length:
        raise ValueError("the key's blob is not of the type it says")
    return f"{kind} {blob}"


def _valid_name(value: str) -> str:
    try:
        return check_name(value)
    except InvalidName as error:
        raise ValueError(error.detail) from error


def _valid_boot_id(value: str) -> str:
    value = value.lower()
    if not _BOOT_ID.fullmatch(value):
        raise ValueError("not a boot id (a UUID, as in /proc/sys/kernel/random/boot_id)")
    return value


def _valid_address(value: str) -> str:
    if "%" in value:
        raise ValueError("an address with a zone is of no use to another host")
    return str(ipaddress.ip_address(value))


def _valid_mac(value: str) -> str:
    value = value.lower().replace("-", ":")
    if not _MAC.fullmatch(value):
        raise ValueError("not a MAC address")
    return value


def _inert(value: Any, depth: int = 0) -> Any:
    """JSON that every database takes: no control characters, lone surrogates, NaN or infinity,
    and long texts cut. Raises ValueError if too deep.
    """
    if depth > _MAX_DEPTH:
        raise ValueError("hardware is nested too deeply")
    if isinstance(value, str):
        return _CONTROL.sub("", value).encode("utf-8", "replace").decode()[:_MAX_TEXT]
    if isinstance(value, list):
        return [_inert(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_inert(str(key))[:64]: _inert(item, depth + 1) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class CallHome(BaseModel):
    """The body of a call home. `address` and `hostname` are claims: recorded, never used."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "hostname": "node-3",
                    "boot_id": "7f0c2c0e-5a5a-4c1e-9a57-8f3d4c1b2a90",
                    "address": "10.0.0.23",
                    "mac": "52:54:00:12:34:56",
                    "ssh_host_keys": [
                        "ssh-ed25519 "
                        "AAAAC3NzaC1lZDI1NTE5AAAAIJ0FQvY6dCkVrGhPn3lVKf3dP1Vv0Yk5nJ2Q5rQ4yq1s"
                    ],
                    "hardware": {"cpu_model": "Intel Core 2 Duo", "cores": 2},
                }
            ]
        },
    )

    hostname: Annotated[str, AfterValidator(_valid_name), Field(max_length=253)]
    boot_id: Annotated[str, AfterValidator(_valid_boot_id)]
    address: Annotated[str, AfterValidator(_valid_address)] | None = None
    mac: Annotated[str, AfterValidator(_valid_mac)] | None = None
    ssh_host_keys: Annotated[
        tuple[Annotated[str, AfterValidator(parse_host_key), Field(max_length=8192)], ...],
        Field(min_length=1, max_length=MAX_HOST_KEYS),
    ]
    hardware: dict[str, Any] | None = None

    @field_validator("hardware")
    @classmethod
    def _hardware_is_data(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if value is None else _inert(value)

    @property
    def host_keys(self) -> tuple[str, ...]:
        """The keys in canonical order, so that two calls can be compared."""
        return tuple(sorted(set(self.ssh_host_keys)))
