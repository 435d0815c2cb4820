"""The server calls no address of its own network on somebody else's behalf."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest

from cuckoo_api.analysis.addresses import PrivateAddress, check_url, is_public, public_socket
from cuckoo_api.model.errors import BadInput

PRIVATE = [
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1",
    "169.254.169.254",  # a cloud's metadata
    "168.63.129.16",  # Azure's
    "100.100.100.200",  # Alibaba's, in the carriers' range
    "192.0.0.192",  # Oracle's
    "198.18.0.1", "192.0.2.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",  # NAT64
    "2002:7f00:1::", "2002:c0a8:101::1",  # 6to4
    "2001:0:4136:e378:8000:63bf:80ff:fffe",  # Teredo, of 127.0.0.1
]  # fmt: skip
PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_of_the_internet(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


def test_a_socket_is_made_for_public_addresses_only() -> None:
    family, kind = socket.AF_INET, socket.SOCK_STREAM
    with public_socket((family, kind, 6, "", ("1.1.1.1", 443))) as made:
        assert (made.family, made.getblocking()) == (family, False)
    with pytest.raises(PrivateAddress, match=r"10\.0\.0\.1 is not an address of the public"):
        public_socket((family, kind, 6, "", ("10.0.0.1", 443)))
    with pytest.raises(PrivateAddress):
        public_socket((socket.AF_INET6, kind, 6, "", ("::1", 443, 0, 0)))


def test_no_socket_is_made_for_a_public_address_of_this_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = SimpleNamespace(family=socket.AF_INET6, address="2606:4700:0:0::1111%eth0")
    mac = SimpleNamespace(family=socket.AF_PACKET, address="00:00:00:00:00:00")
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {"eth0": [mac, own]})
    with pytest.raises(PrivateAddress, match="is this host"):
        public_socket((socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2606:4700::1111", 80, 0, 0)))


@pytest.mark.parametrize(
    "text", ["https://soc.example/hook?key=1", "http://1.1.1.1:8080/", "https://[2606:4700::1]/"]
)
def test_an_address_that_may_be_called(text: str) -> None:
    assert check_url("callback", text, allow_private=False) == text


@pytest.mark.parametrize(
    "text",
    [
        "x", "ftp://a.example/", "file:///etc/passwd", "http://", "//a.example/", "http://u:p@a.example/",
        "http://a.example:0/", "http://a.example:99999/", "http://a.example/\n", "http://[::1/",
        "http://a.example/" + "x" * 2048,
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"^callback: expected an http"):
        check_url("callback", text, allow_private=True)


@pytest.mark.parametrize(
    "text",
    ["http://127.0.0.1/", "http://[::1]:80/", "http://169.254.169.254/latest/", "http://localhost/",
     "http://a.LOCALHOST./"],
)  # fmt: skip
def test_a_private_one_is_refused_unless_it_is_allowed(text: str) -> None:
    with pytest.raises(BadInput, match=r"allow_private in conf/cuckoo\.conf"):
        check_url("callback", text, allow_private=False)
    check_url("callback", text, allow_private=True)
