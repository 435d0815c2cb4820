"""The rooter's firewall as text, and whatever routes there are, only marked ways through it."""

from __future__ import annotations

import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.network.rooter.commands import Service
from cuckoo_api.network.rooter.ruleset import Exit, Grant, Tap, ruleset, tap_rules

EXITS = [
    Exit(),
    Exit(interface="tun0", table=18000, dns="10.8.0.1"),
    Exit(interface="eth0", table=254),
    Exit(server="192.0.2.9", ports=((80, 8080),), dns="192.0.2.9"),
    Exit(proxy=9040, proxy_dns=5353),
]
GRANTS = st.lists(
    st.tuples(st.integers(1, 250), st.sampled_from(EXITS)), unique_by=lambda one: one[0], max_size=6
).map(
    lambda found: [
        Grant(f"192.168.55.{host}", "virbr0", way, number)
        for number, (host, way) in enumerate(found, 1)
    ]
)
SERVICES = {"virbr0": [Service("tcp", "192.168.55.1", 2042)], "virbr1": []}


TAPS = [Tap(f"ckr{n}", "qemubr", f"192.168.55.{10 + n}", f"52:54:00:00:00:{n:02x}") for n in (1, 2)]


def chain(text: str, name: str) -> list[str]:
    body = text.split(f"chain {name} {{")[1].split("\n    }")[0]
    return [line.strip() for line in body.splitlines() if line.strip()]


@pytest.mark.slow
@given(GRANTS)
def test_each_chain_ends_in_a_drop_and_opens_for_one_guest_at_a_time(grants: list[Grant]) -> None:
    text = ruleset(SERVICES, grants)
    for name in ("leaving", "coming", "host"):
        assert chain(text, name)[-1] == "drop"
    accepted = [rule for rule in chain(text, "leaving") if rule.endswith("accept")]
    for grant in grants:
        own = [rule for rule in accepted if rule.startswith(grant.comes_from + " ")]
        assert len(own) == bool(grant.exit.interface) + bool(grant.exit.server)
        assert all(f"ct mark {grant.mark} accept" in rule for rule in own)
        assert all("oifname" in rule or "ip daddr" in rule for rule in own), "one way only"
        accepted = [rule for rule in accepted if rule not in own]
    assert accepted == []
    for rule in chain(text, "coming")[:-1]:
        assert re.search(r"ip daddr \S+ ct state established,related ct mark \S+ accept$", rule)
    marks = [grant.mark for grant in grants]
    assert len(set(marks)) == len(marks)


def test_a_guest_without_a_route_has_the_result_server() -> None:
    text = ruleset(SERVICES, [])
    assert chain(text, "leaving")[0] == "meta nfproto != ipv4 drop"
    assert [rule for rule in chain(text, "host") if "2042" in rule] == [
        'iifname "virbr0" ip daddr 192.168.55.1 tcp dport 2042 accept'
    ]
    assert not [rule for rule in chain(text, "host") if "virbr1" in rule]
    assert 'elements = { "virbr0", "virbr1" }' in text


def test_what_an_exit_turns_elsewhere_is_let_in_there_only() -> None:
    tor = Grant("192.168.55.11", "virbr0", EXITS[4], 1)
    host = chain(ruleset(SERVICES, [tor]), "host")
    turned = [rule for rule in host if tor.guest in rule]
    assert [rule.split(" ct status dnat ")[1] for rule in turned] == [
        f"ct mark {tor.mark} tcp dport 9040 accept",
        f"ct mark {tor.mark} udp dport 5353 accept",
    ]


@pytest.mark.parametrize("count", [0, len(EXITS)])
def test_nft_understands_it(count: int) -> None:
    grants = [Grant(f"192.168.55.{n}", "virbr0", EXITS[n], n + 1) for n in range(count)]
    check = ["unshare", "--user", "--map-root-user", "--net", "nft", "--check", "-f", "-"]
    text = ruleset(SERVICES, grants) + tap_rules(TAPS[:count])
    done = subprocess.run(check, input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_each_tap_is_for_one_guest_s_addresses_and_an_unknown_one_for_none() -> None:
    assert chain(tap_rules([]), "sent") == ["drop"]
    assert chain(tap_rules(TAPS), "heard") == [
        "ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 accept",
        'oifname "ckr1" ether daddr 52:54:00:00:00:01 accept',
        'oifname "ckr2" ether daddr 52:54:00:00:00:02 accept',
        "drop",
    ]
    rules = chain(tap_rules(TAPS), "sent")
    assert rules.pop() == "drop"
    assert len(rules) == 4
    for tap in TAPS:
        own = [rule for rule in rules if f'iifname "{tap.name}" ether saddr {tap.mac} ' in rule]
        assert [rule.partition(" ether type ")[2] for rule in own] == [
            f"ip ip saddr {tap.guest} accept",
            f"arp arp saddr ether {tap.mac} arp saddr ip {tap.guest} accept",
        ]
