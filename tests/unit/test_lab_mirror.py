"""Which mirror the laboratory takes from a host's apt sources."""

from pathlib import Path

import pytest

from fleet.errors import SetupFailed
from fleet.settings import Settings
from lab.mirror import (
    AptSource,
    Mirrors,
    choose_mirror,
    find_mirrors,
    parse_deb822,
    parse_one_line,
    read_sources,
)

DEB822 = """\
Types: deb deb-src
# the nearest one
URIs: http://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
"""

ONE_LINE = """\
# deb http://old.example/debian bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
https://mirror.example/debian trixie main contrib
deb https://mirror.example/debian trixie-updates main
deb-src https://source.example/debian trixie main
deb http://mirror.example/security trixie-security main
"""


def apt_dir(tmp_path: Path, **files: str) -> Path:
    """An /etc/apt of a test's own; `list` is sources.list, other names are .sources files."""
    (tmp_path / "sources.list.d").mkdir()
    for name, text in files.items():
        file = "sources.list" if name == "list" else f"sources.list.d/{name}.sources"
        (tmp_path / file).write_text(text)
    return tmp_path


def test_deb822_sources_are_read_past_comments() -> None:
    """A .sources file gives each URI with its suites and signer."""
    assert parse_deb822(DEB822) == (
        AptSource(
            "http://mirror.example/debian/",
            ("bookworm", "bookworm-updates"),
            "/usr/share/keyrings/debian-archive-keyring.gpg",
        ),
        AptSource("http://mirror.example/debian-security", ("bookworm-security",)),
    )


def test_one_line_sources_are_read_past_options() -> None:
    """A sources.list gives its binary sources; comments and deb-src lines give none."""
    assert [
        ("https://mirror.example/debian", ("trixie",)),
        ("https://mirror.example/debian", ("trixie-updates",)),
        ("http://mirror.example/security", ("trixie-security",)),
    ] == [(source.uri, source.suites) for source in parse_one_line(ONE_LINE)]


def test_a_folded_field_and_a_disabled_source_are_understood() -> None:
    """Continuation lines belong to their field; `Enabled: no` takes a source out."""
    folded = "Types: deb\nURIs: http://a.example/debian\n http://b.example/debian\nSuites: sid\n"
    disabled = "\nTypes: deb\nEnabled: no\nURIs: http://c.example/debian\nSuites: sid\n"
    assert ["http://a.example/debian", "http://b.example/debian"] == [
        source.uri for source in parse_deb822(folded + disabled)
    ]


@pytest.mark.parametrize("files", [{"debian": DEB822}, {"list": ONE_LINE.replace("https", "http")}])
def test_both_formats_lead_to_the_mirrors(tmp_path: Path, files: dict[str, str]) -> None:
    """The host's own mirror is taken, whichever way and release its sources are written for."""
    found = find_mirrors(Settings(), apt_dir(tmp_path, **files))
    assert "http://mirror.example/debian" == found.debian
    assert found.security.startswith("http://mirror.example/")


def test_settings_are_stronger_than_the_sources(tmp_path: Path) -> None:
    """Mirrors from the settings are used as they are, without a trailing slash."""
    settings = Settings(
        debian_mirror="http://own.example/d/", debian_security_mirror="http://own.example/s"
    )
    expected = Mirrors("http://own.example/d", "http://own.example/s")
    assert expected == find_mirrors(settings, apt_dir(tmp_path, debian=DEB822))


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("", "MUSTER_DEBIAN_MIRROR"),
        ("Types: deb\nURIs: file:/srv/debian\nSuites: trixie\n", "MUSTER_DEBIAN_MIRROR"),
        (
            "Types: deb\nURIs: http://m.example/debian\nSuites: trixie\n",
            "MUSTER_DEBIAN_SECURITY_MIRROR",
        ),
    ],
)
def test_without_a_mirror_the_setting_is_named(tmp_path: Path, text: str, setting: str) -> None:
    """A host without usable sources is told which setting helps."""
    with pytest.raises(SetupFailed) as failure:
        find_mirrors(Settings(), apt_dir(tmp_path, debian=text))
    assert setting in failure.value.remedy


def test_archives_of_others_are_passed_over() -> None:
    """A vendor's archive that uses Debian's release names is not taken for Debian's."""
    sources = (
        AptSource("https://vendor.example/debian", ("bookworm",), "/usr/share/keyrings/vendor.gpg"),
        AptSource("https://unsigned.example/debian", ("bookworm",)),
        AptSource("https://apt.example/debian", ("vendor-bookworm",)),
        AptSource("http://mirror.example/debian", ("bookworm", "bookworm-updates")),
    )
    assert "http://mirror.example/debian" == choose_mirror(sources, security=False)
    assert choose_mirror(sources, security=True) is None


def test_a_mirror_list_of_a_cloud_image_is_followed(tmp_path: Path) -> None:
    """`mirror+file:` leads to the first mirror of its list."""
    mirrors = tmp_path / "mirrors.list"
    mirrors.write_text("http://first.example/debian priority:1\nhttp://second.example/debian\n")
    text = f"Types: deb\nURIs: mirror+file://{mirrors}\nSuites: trixie\n"
    folder = apt_dir(tmp_path, debian=text)
    assert ["http://first.example/debian"] == [source.uri for source in read_sources(folder)]
