"""Names and addresses of a laboratory."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleet.errors import SetupFailed
from fleet.settings import Settings
from lab.addresses import allocate_number, lab_names, lab_subnet, proxy_url, ssh_proxy_entry

SMALL = lab_subnet(Settings(lab_subnet="10.9.0.0/29"))
NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)


@given(NAMES, st.sets(st.integers(2, 6), max_size=4))
def test_a_number_is_free_and_a_host_of_the_subnet(name: str, taken: set[int]) -> None:
    """A new machine gets neither the network's, the gateway's, another's nor the broadcast's."""
    number = allocate_number(name, taken, SMALL)
    assert number not in taken | {0, 1, 7}
    assert SMALL.address(number) in {str(host) for host in SMALL.network.hosts()}


@given(NAMES)
def test_the_same_name_gets_the_same_number(name: str) -> None:
    """Addresses follow from names as long as nobody else has them."""
    subnet = lab_subnet(Settings())
    assert allocate_number(name, (), subnet) == allocate_number(name, (), subnet)


def test_a_full_subnet_says_what_to_do() -> None:
    """The machine for which no address is left is refused, with a way out."""
    with pytest.raises(SetupFailed, match="All 5 addresses"):
        allocate_number("one-too-many", range(2, 7), SMALL)


@pytest.mark.parametrize("subnet", ["10.0.0.1/24", "10.0.0.0/30", "10.0.0.0/8", "fd00::/64", "x"])
def test_a_subnet_that_cannot_be_used_is_refused(subnet: str) -> None:
    """The setting is named when its value is no IPv4 network of a useful size."""
    with pytest.raises(SetupFailed, match="lab_subnet"):
        lab_subnet(Settings(lab_subnet=subnet))


def test_two_homes_have_different_names() -> None:
    """Laboratories of two homes share no namespace and no control group."""
    one, two = lab_names(Path("/srv/one")), lab_names(Path("/srv/two"))
    assert one.netns != two.netns
    assert one.machine_netns(7) != two.machine_netns(7)


def test_ssh_enters_the_namespace_for_the_subnet() -> None:
    """The entry for `ssh_proxies` names subnet and namespace and holds no comma."""
    settings = Settings(home=Path("/srv/muster"), lab_subnet="10.7.0.0/24")
    entry = ssh_proxy_entry(settings)
    netns = lab_names(settings.home).netns
    assert f"10.7.0.0/24=nsenter --net=/run/netns/{netns} nc %h %p" == entry
    assert "," not in entry


def test_the_proxy_listens_on_the_gateway() -> None:
    """Machines find packages at the first host of the subnet."""
    assert "http://10.7.0.1:3142" == proxy_url(lab_subnet(Settings(lab_subnet="10.7.0.0/24")))
