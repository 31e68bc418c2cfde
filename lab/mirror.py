"""Which Debian mirror the laboratory uses: the one that the host itself uses.

The host's own release does not matter: its apt sources tell where an archive is, and the
archive holds every release.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fleet.errors import SetupFailed
from fleet.settings import Settings

APT_DIR = Path("/etc/apt")
_RELEASES = frozenset(
    {"stable", "oldstable", "testing", "unstable", "sid"}
    | {"bullseye", "bookworm", "trixie", "forky", "duke"}
)
_SECURITY_SUITES = frozenset(f"{name}-security" for name in _RELEASES)
_UPDATES_SUITES = frozenset(f"{name}-updates" for name in _RELEASES)
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)")


@dataclass(frozen=True)
class Mirrors:
    """URIs of the two archives, http or https, without a trailing slash."""

    debian: str
    security: str


@dataclass(frozen=True)
class AptSource:
    """One archive that apt knows: where it is, which suites of it, and who signs it."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str = ""


def find_mirrors(settings: Settings, apt_dir: Path = APT_DIR) -> Mirrors:
    """The mirrors of the settings, else those of the host's apt sources.

    Raises SetupFailed naming the setting that would help.
    """
    sources = read_sources(apt_dir)
    debian = settings.debian_mirror or choose_mirror(sources, security=False)
    security = settings.debian_security_mirror or choose_mirror(sources, security=True)
    if not debian:
        raise _no_mirror("Debian mirror", "MUSTER_DEBIAN_MIRROR", apt_dir)
    if not security:
        raise _no_mirror(
            "mirror of Debian's security archive", "MUSTER_DEBIAN_SECURITY_MIRROR", apt_dir
        )
    return Mirrors(debian.rstrip("/"), security.rstrip("/"))


def read_sources(apt_dir: Path = APT_DIR) -> tuple[AptSource, ...]:
    """Every enabled binary source in `sources.list` and `sources.list.d`, in apt's order."""
    files = [apt_dir / "sources.list", *sorted((apt_dir / "sources.list.d").glob("*"))]
    found: list[AptSource] = []
    for file in files:
        if file.is_file() and file.suffix in {".list", ".sources"}:
            text = file.read_text(encoding="utf-8", errors="replace")
            parse = parse_deb822 if file.suffix == ".sources" else parse_one_line
            found.extend(parse(text))
    return tuple(_follow_mirror_list(source) for source in found)


def parse_one_line(text: str) -> tuple[AptSource, ...]:
    """Sources of a `sources.list` file: `deb [options] uri suite component…`."""
    matches = (_ONE_LINE.match(line.strip()) for line in text.splitlines())
    return tuple(
        AptSource(match["uri"], (match["suite"],), _signer(match["options"] or ""))
        for match in matches
        if match
    )


def parse_deb822(text: str) -> tuple[AptSource, ...]:
    """Sources of a `.sources` file: paragraphs of fields, as deb822(5) describes."""
    sources: list[AptSource] = []
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields = _fields(paragraph)
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes") != "no":
            suites = tuple(fields.get("suites", "").split())
            uris = fields.get("uris", "").split()
            sources += [AptSource(uri, suites, fields.get("signed-by", "")) for uri in uris]
    return tuple(sources)


def choose_mirror(sources: Iterable[AptSource], *, security: bool) -> str | None:
    """The URI of Debian's main or security archive among `sources`, or None.

    Other archives use Debian's release names too; theirs are signed by other keys, and none
    has `<release>-updates` beside the release.
    """
    wanted = _SECURITY_SUITES if security else _RELEASES
    candidates: dict[str, set[str]] = {}
    for source in sources:
        if source.uri.startswith(("http://", "https://")) and _signed_by_debian(source):
            suites = {suite.strip("/") for suite in source.suites}
            candidates.setdefault(source.uri.rstrip("/"), set()).update(suites)
    fitting = [(uri, suites) for uri, suites in candidates.items() if suites & wanted]
    complete = [uri for uri, suites in fitting if suites & _UPDATES_SUITES]
    return next(iter([*complete, *(uri for uri, _ in fitting)]), None)


def _signed_by_debian(source: AptSource) -> bool:
    return not source.signed_by or "debian-archive" in source.signed_by


def _signer(options: str) -> str:
    return next(
        (part.partition("=")[2] for part in options.split() if part.startswith("signed-by=")), ""
    )


def _fields(paragraph: str) -> dict[str, str]:
    """The fields of one deb822 paragraph, names in lower case, continuations joined."""
    fields: dict[str, str] = {}
    name = ""
    for line in paragraph.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0] in " \t":
            fields[name] = f"{fields.get(name, '')} {line.strip()}".strip()
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    return fields


def _follow_mirror_list(source: AptSource) -> AptSource:
    """Put the first mirror of a `mirror+file:` list in the list's place, as cloud images need."""
    if not source.uri.startswith("mirror+file:"):
        return source
    path = Path("/" + source.uri.removeprefix("mirror+file:").lstrip("/"))
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    uris: Sequence[str] = [line.split()[0] for line in lines if line.startswith("http")]
    return AptSource(uris[0] if uris else source.uri, source.suites, source.signed_by)


def _no_mirror(what: str, setting: str, apt_dir: Path) -> SetupFailed:
    return SetupFailed(
        f"No {what} was found in the apt sources below {apt_dir}.",
        remedy=f"Set {setting} to its URI.",
    )
