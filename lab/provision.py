"""The files that make a clone of the base into a machine of its own."""

from dataclasses import dataclass

from lab.addresses import Subnet, proxy_url
from lab.image import SUITE


@dataclass(frozen=True)
class InjectedFile:
    """A file put into a machine before it boots, as root:root; `path` is absolute inside."""

    path: str
    content: bytes
    mode: int = 0o644


def machine_files(name: str, subnet: Subnet) -> tuple[InjectedFile, ...]:
    """What a machine gets once, before its first start: its name and its way to packages."""
    texts = {
        "/etc/hostname": f"{name}\n",
        "/etc/hosts": _hosts(name),
        "/etc/apt/sources.list.d/debian.sources": _sources(proxy_url(subnet)),
        "/etc/apt/apt.conf.d/90lab": _APT_CONF,
    }
    return tuple(InjectedFile(path, text.encode()) for path, text in texts.items())


def _hosts(name: str) -> str:
    return (
        f"127.0.0.1 localhost\n127.0.1.1 {name}\n"
        "::1 localhost ip6-localhost ip6-loopback\n"
        "ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    )


def _sources(proxy: str) -> str:
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    return (
        f"Types: deb\nURIs: {proxy}/debian\nSuites: {SUITE} {SUITE}-updates\n"
        f"Components: main\nSigned-By: {keyring}\n\n"
        f"Types: deb\nURIs: {proxy}/debian-security\nSuites: {SUITE}-security\n"
        f"Components: main\nSigned-By: {keyring}\n"
    )


# The proxy answers once it has the whole file, which takes a slow mirror a while.
_APT_CONF = """\
Acquire::http::Timeout "300";
Acquire::http::Proxy "DIRECT";
Acquire::Languages "none";
APT::Install-Recommends "false";
"""
