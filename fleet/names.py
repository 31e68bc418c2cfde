"""What may be called a machine's name.

A name becomes a hostname, an inventory key, a tag and part of file names, so only lower-case
RFC 1123 labels pass, and none that Ansible or the resolver gives a meaning.
"""

import re

from fleet.errors import InvalidName

RFC1123_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

# Ansible's own groups, the resolver's name, and the groups of our inventory
# (inventory/static.yaml; a test holds the two together).
RESERVED_NAMES = frozenset(
    {"all", "ungrouped", "localhost", "machines", "ready", "control-nodes", "control_nodes"}
)


def check_name(name: str) -> str:
    """Return `name` if a machine may be called so.

    Raises InvalidName: not an RFC 1123 label in lower case, all digits, or reserved.
    """
    remedy = "Use 1 to 63 of a-z, 0-9 and inner hyphens, such as node-3."
    if not RFC1123_LABEL.fullmatch(name):
        raise InvalidName(
            f"{name[:80]!r} is not an RFC 1123 hostname in lower case.", remedy=remedy
        )
    if name.isdigit():
        raise InvalidName(f"{name!r} is all digits and would read as a number.", remedy=remedy)
    if name in RESERVED_NAMES:
        raise InvalidName(f"{name!r} is reserved.", remedy=remedy)
    return name
