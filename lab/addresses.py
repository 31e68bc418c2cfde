"""Names and addresses of a laboratory, derived from its home folder and its subnet."""

import hashlib
import ipaddress
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import SetupFailed
from fleet.settings import Settings

PROXY_PORT = 3142
_FIRST_MACHINE = 2  # the gateway is 1


@dataclass(frozen=True)
class LabNames:
    """What a laboratory's parts are called on the host; one laboratory per home folder."""

    netns: str
    """Namespace of the bridge, the gateway, the proxy and the API's socket."""

    def machine_netns(self, number: int) -> str:
        """Namespace of one machine; also its name for systemd-nspawn."""
        return f"{self.netns}-{number}"

    def cgroup(self, number: int) -> str:
        return f"{self.netns}/{number}"


@dataclass(frozen=True)
class Subnet:
    """The laboratory's IPv4 network: host 1 is the gateway, machines have the numbers behind."""

    network: ipaddress.IPv4Network

    @property
    def gateway(self) -> str:
        return self.address(1)

    @property
    def prefix_length(self) -> int:
        return self.network.prefixlen

    def address(self, number: int) -> str:
        return str(self.network[number])


def lab_names(home: Path) -> LabNames:
    """The names for this home folder: two homes share none."""
    return LabNames(f"muster-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}")


def lab_subnet(settings: Settings) -> Subnet:
    """The subnet of the settings. Raises SetupFailed when it is none or too small."""
    try:
        network = ipaddress.IPv4Network(settings.lab_subnet)
    except ValueError as error:
        raise _bad_subnet(f"lab_subnet is no IPv4 network: {error}.") from error
    if not 16 <= network.prefixlen <= 29:  # noqa: PLR2004 - room for 5 to 65,533 machines
        raise _bad_subnet(f"lab_subnet {network} is not between /16 and /29.")
    return Subnet(network)


def allocate_number(name: str, taken: Collection[int], subnet: Subnet) -> int:
    """The host number for a new machine: the same for the same name unless another has it.

    Raises SetupFailed when the subnet is full.
    """
    room = subnet.network.num_addresses - 1 - _FIRST_MACHINE
    start = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % room
    for step in range(room):
        number = _FIRST_MACHINE + (start + step) % room
        if number not in taken:
            return number
    raise SetupFailed(
        f"All {room} addresses of {subnet.network} belong to laboratory machines.",
        remedy="Destroy one with `./muster lab destroy NAME`, or widen MUSTER_LAB_SUBNET.",
    )


def proxy_url(subnet: Subnet) -> str:
    """Where machines reach the caching proxy."""
    return f"http://{subnet.gateway}:{PROXY_PORT}"


def ssh_proxy_entry(settings: Settings) -> str:
    """An entry of the setting `ssh_proxies` that takes ssh into this laboratory.

    Format: `<cidr>=<ProxyCommand>`, in which ssh puts host and port for %h and %p.
    """
    netns = lab_names(settings.home).netns
    network = lab_subnet(settings).network
    return f"{network}=nsenter --net=/run/netns/{netns} nc %h %p"


def _bad_subnet(detail: str) -> SetupFailed:
    return SetupFailed(detail, remedy="Set MUSTER_LAB_SUBNET to one such as 10.213.0.0/24.")
