"""What the laboratory's proxy takes for a path of a Debian archive."""

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.proxy_cache import check_path, never_changes


@pytest.mark.parametrize(
    "path",
    [
        "dists/trixie/InRelease",
        "pool/main/libs/libstdc++6/libstdc++6_14.2.0-19_amd64.deb",
        "pool/main/j/jq/jq_1.7.1-6+deb13u4~bpo_amd64.deb",
        "dists/trixie/main/by-hash/SHA256/" + "0" * 64,
    ],
)
def test_archive_paths_pass_unchanged(path: str) -> None:
    """The names that archives use are let through as they are."""
    assert path == check_path(path)


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "pool/../../etc/passwd",
        "pool//x",
        "pool/./x",
        "pool/",
        "pool/.hidden",
        "pool/a b",
        "pool/a\\b",
        "pool/a%2fb",
        "pool/a?x=1",
        "pool/a#b",
        "pool/a\r\nHost: x",
        "pool/\x00",
        "pool/ü",
        "a/" * 40 + "a",
        "pool/" + "a" * 300,
    ],
)
def test_anything_else_is_refused(path: str) -> None:
    """A path that could leave the cache, or change the request upstream, is refused."""
    with pytest.raises(ValueError, match="no path of a Debian archive"):
        check_path(path)


@given(st.text(alphabet="ab./\\%\x00~+", max_size=30))
def test_a_path_that_passes_stays_below_its_folder(path: str) -> None:
    """What passes is already normal: no part of it climbs."""
    try:
        checked = check_path(path)
    except ValueError:
        return
    assert f"/cache/{checked}" == posixpath.normpath(f"/cache/{checked}")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("pool/main/j/jq/jq_1_amd64.deb", True),
        ("dists/trixie/main/binary-amd64/by-hash/SHA256/00ff", True),
        ("dists/trixie/InRelease", False),
        ("dists/trixie/main/binary-amd64/Packages.xz", False),
        ("dists/by-hash/other", False),
    ],
)
def test_only_the_pool_and_indices_by_hash_never_change(path: str, expected: bool) -> None:
    """Only files whose content their name fixes are kept."""
    assert expected is never_changes(path)
