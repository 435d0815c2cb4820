"""The firewall of the bridge, as text. What it does to a guest is tested with real ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuckoo_api.machinery import ROUTED_MARK, ROUTED_MASK, BadConfig, Service
from cuckoo_machinery_qemu.bridge import BridgeNetwork, firewall
from cuckoo_machinery_qemu.spec import MachineSpec


def spec(label: str, ip: str, gateway: str = "10.3.2.1") -> MachineSpec:
    return MachineSpec(
        label=label,
        index=0,
        ip=ip,
        gateway=gateway,
        program=Path("qemu"),
        machine="pc",
        image=Path("image"),
        image_format="raw",
        kernel=None,
        initrd=None,
        append="",
        memory=256,
        cpus=1,
    )


ONE, TWO = spec("one", "10.3.2.11"), spec("two", "10.4.2.11", "10.4.2.1")
ROUTED = f"ct mark & {ROUTED_MASK:#x} == {ROUTED_MARK:#x}"
"""What the rooter has let go, and marked."""
SERVICES = [Service("results", "tcp", 2042), Service("dns", "udp", 53)]


def chain(text: str, name: str) -> list[str]:
    """The rules of a chain."""
    body = text.split(f"chain {name} {{")[1].split("\n    }")[0]
    return [line.strip() for line in body.splitlines() if line.strip()]


def test_guests_reach_the_listed_services_and_nothing_else() -> None:
    assert chain(firewall("br7", [ONE], SERVICES), "guests") == [
        "ct state established,related accept",
        "ip daddr @hosts tcp dport 2042 accept",
        "ip daddr @hosts udp dport 53 accept",
        f"{ROUTED} ct status dnat accept",
        "drop",
    ]
    assert chain(firewall("br7", [ONE], []), "guests")[2:] == ["drop"]


def test_the_host_is_every_gateway_once() -> None:
    text = firewall("br7", [ONE, spec("three", "10.3.2.12"), TWO], [])
    assert "elements = { 10.3.2.1, 10.4.2.1 }" in text


def test_all_that_comes_in_by_the_bridge_is_judged_and_nothing_is_forwarded() -> None:
    text = firewall("br7", [ONE], SERVICES)
    assert chain(text, "input")[1:] == ['iifname "br7" jump guests']
    assert chain(text, "forward")[1:] == [
        f"{ROUTED} accept", 'iifname "br7" drop', 'oifname "br7" drop',
    ]  # fmt: skip


def test_each_machine_speaks_as_itself_only() -> None:
    rules = chain(firewall("br7", [ONE, TWO], []), "prerouting")
    for machine in (ONE, TWO):
        tap = f'iifname "{machine.tap}"'
        assert f"{tap} ether saddr != {machine.mac} drop" in rules
        assert f"{tap} ether type arp arp saddr ip != {machine.ip} drop" in rules
        assert f"{tap} ether type ip ip saddr != {machine.ip} drop" in rules
    assert rules[-1] == 'iifname "ck*" ether type != { ip, arp } drop'


@pytest.mark.parametrize("family", ["inet", "bridge"])
def test_an_older_table_of_the_name_is_replaced(family: str) -> None:
    lines = firewall("br7", [ONE], []).splitlines()
    begin = lines.index(f"table {family} cuckoo_br7")
    assert lines[begin + 1] == f"delete table {family} cuckoo_br7"
    assert lines[begin + 2] == f"table {family} cuckoo_br7 {{"


@pytest.mark.parametrize("name", ["", "a" * 16, "br 0", "br;drop", 'br"', "br-0", "bré"])
def test_a_bridge_s_name_holds_letters_and_digits_only(name: str) -> None:
    with pytest.raises(BadConfig, match=r"interface = .*; allowed: 1 to 15 letters and digits"):
        BridgeNetwork(name, [ONE], [])
