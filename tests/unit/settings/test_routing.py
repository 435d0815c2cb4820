"""routing.conf: routes and VPNs, with the keys of Cuckoo 2."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.settings import Network, load_network, load_settings

VPNS = """
[routing]
route = vpn0
internet = eth0
drop = yes
[vpn]
enabled = yes
vpns = vpn0, wg
[vpn0]
name = vpn0
description = Spain, Europe
interface = tun0
rt_table = tun0
management = /run/openvpn/vpn0.sock
country = ES
[wg]
interface = wg0
type = wireguard
probe = 10.9.0.1:80
[other]
interface = tun9
[rooter]
group = cuckoo
interfaces = virbr0, virbr1
"""


def network(tmp_path: Path, text: str) -> Network:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "routing.conf").write_text(text)
    return load_network(tmp_path)


def faults(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        network(tmp_path, text)
    return [fault.removeprefix("conf/routing.conf:") for fault in caught.value.faults]


def test_vpns_are_read_and_the_routes_that_they_make(tmp_path: Path) -> None:
    found = network(tmp_path, VPNS)
    vpn, wireguard = found.vpns["vpn0"], found.vpns["wg"]
    assert (vpn.type, vpn.country, vpn.rt_table) == ("openvpn", "es", "tun0")
    assert (wireguard.type, wireguard.name, wireguard.probe) == ("wireguard", "wg", "10.9.0.1:80")
    assert found.routes == {"none", "drop", "internet", "vpn0", "wg", "vpn:random", "vpn:es"}
    assert found.candidates("vpn:random") == ["vpn0", "wg"]
    assert found.candidates("vpn:es") == ["vpn0"]
    assert found.candidates("internet") == ["internet"]
    assert found.rooter.interfaces == ("virbr0", "virbr1")
    assert load_settings(tmp_path, [], machinery=()).network == found


def test_a_rooter_s_own_file_is_all_that_is_read(tmp_path: Path) -> None:
    own = tmp_path / "own.conf"
    with pytest.raises(ConfigError, match=r"own.conf is not there"):
        load_network(tmp_path, own)
    own.write_text(VPNS)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "routing.conf").write_text("[rooter]\ninterfaces = eth0\n")
    (tmp_path / "conf" / "cuckoo.conf").write_text("[cuckoo]\nrooter = /tmp/elsewhere\n")
    found = load_network(tmp_path, own)
    assert (found.rooter.interfaces, found.socket) == (("virbr0", "virbr1"), Network().socket)
    own.write_text("[rooter]\nbridges = x\n")
    with pytest.raises(ConfigError, match=r"own.conf:2 .rooter. bridges: 'x'"):
        load_network(tmp_path, own)


def test_bridges_that_the_rooter_makes_are_among_its_interfaces(tmp_path: Path) -> None:
    text = "[rooter]\ninterfaces = virbr0\nbridges = qemubr:192.168.55.1/24, b-2:10.1.0.1/16\n"
    rooter = network(tmp_path, text).rooter
    assert rooter.interfaces == ("virbr0", "qemubr", "b-2")
    assert {name: str(address) for name, address in rooter.made.items()} == {
        "qemubr": "192.168.55.1/24",
        "b-2": "10.1.0.1/16",
    }


@pytest.mark.parametrize(
    "bridge",
    [
        *("qemubr", "qemubr:192.168.55.1", ":192.168.55.1/24", "all:192.168.55.1/24"),
        *("../x:192.168.55.1/24", "a123456789012345:192.168.55.1/24", "br:192.168.55.0/24"),
        *("br:192.168.55.255/24", "br:192.168.55.1/31", "br:8.8.8.8/24", "br:127.0.0.1/24"),
        *("br:169.254.1.1/24", "br:224.0.0.1/24", "br:192.168.55.1/24/1"),
        "one:192.168.55.1/25, two:192.168.55.2/24",
        "one:192.168.55.1/24, one:192.168.56.1/24",
    ],
)
def test_a_bridge_has_a_name_and_a_network_of_its_own(tmp_path: Path, bridge: str) -> None:
    [fault] = faults(tmp_path, f"[rooter]\nbridges = {bridge}\n")
    assert fault.startswith("2 [rooter] bridges: ")


def test_without_anything_there_is_no_route_but_the_configured_one(tmp_path: Path) -> None:
    assert network(tmp_path, "").routes == {"none"}
    (tmp_path / "conf" / "routing.conf").write_text("[routing]\nroute = sinkhole\n")
    assert load_network(tmp_path).routes == {"sinkhole"}


def test_a_vpn_that_is_not_used_brings_no_warning(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "routing.conf").write_text(VPNS)
    assert load_settings(tmp_path, [], machinery=()).warnings == ()
    disabled = VPNS.replace("enabled = yes", "enabled = no").replace("route = vpn0", "route = none")
    (tmp_path / "conf" / "routing.conf").write_text(disabled)
    assert load_settings(tmp_path, [], machinery=()).warnings == ()
    assert load_network(tmp_path).vpns == {}


def test_an_interface_of_which_nothing_is_known_brings_a_warning(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    plain = "[vpn]\nenabled = yes\nvpns = a\n[a]\ninterface = tun0\n"
    (tmp_path / "conf" / "routing.conf").write_text(plain)
    [warning] = load_settings(tmp_path, [], machinery=()).warnings
    assert "[a] probe: without it nothing tells" in warning


def test_what_is_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    text = (
        "[routing]\nroute = tor\ninternet = a/b\ndns = example\non_down = later\n"
        "[inetsim]\nenabled = yes\nports = 80\n"
        "[vpn]\nenabled = yes\nvpns = a, b, gone\n"
        "[a]\nname = none\ninterface = a/b\n[b]\ninterface = tun0\ntype = openvpn\ncountry = abc\n"
        "rt_table = local\ndns = x\n"
    )
    allowed = "none, sinkhole, b, inetsim, internet, vpn:abc, vpn:random"
    assert sorted(faults(tmp_path, text)) == sorted(
        [
            f"2 [routing] route: 'tor'; allowed: {allowed}",
            "3 [routing] internet: 'a/b'; allowed: an interface's name, such as eth0",
            "4 [routing] dns: 'example'; allowed: an IPv4 address",
            "5 [routing] on_down: 'later'; allowed: fail, wait",
            "8 [inetsim] ports: '80'; allowed: ports such as 80:8080",
            "conf/routing.conf [inetsim] server: 'nothing'; allowed: an IPv4 address",
            "11 [vpn] vpns: 'gone' has no section [gone]",
            "13 [a] name: 'none'; allowed: letters and digits, no route's name",
            "14 [a] interface: 'a/b'; allowed: such as tun0",
            "conf/routing.conf [b] management: is missing: only OpenVPN itself knows its state",
            "18 [b] country: 'abc'; allowed: two letters, such as de",
            "19 [b] rt_table: 'local'; allowed: a number or a name",
            "20 [b] dns: 'x'; allowed: an IPv4 address",
        ]
    )
