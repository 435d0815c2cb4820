"""A line of text is a URL, a hash, or neither."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.analysis.strings import MAX_LINES, MAX_URL, Hash, lines_of, parse_line
from cuckoo_api.model.errors import BadInput


@pytest.mark.parametrize(
    "line",
    [
        "http://example.com",
        "https://example.com:8443/a?b=c#d",
        "HTTP://EXAMPLE.COM/",
        "ftp://example.com/x.exe",
        "http://[::1]:8080/",
        "http://user:password@host/",
        "http://bücher.example/ä",
        "http://localhost",
    ],
)
def test_a_url_stays_as_it_is(line: str) -> None:
    assert parse_line(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "example.org",
        "EXAMPLE.org",
        "sub.example.co.uk",
        "example.org/path?x=1",
        "example.org:8080",
        "example.org:8080/x",
        "_dmarc.example.org",
        "xn--bcher-kva.example",
        "bücher.example",
        "example.xn--p1ai",
        "example.org.",
        "192.0.2.1",
        "192.0.2.1:81/x",
    ],
)
def test_a_bare_domain_gets_a_scheme(line: str) -> None:
    assert parse_line(line) == f"http://{line}"


@pytest.mark.parametrize(("algorithm", "length"), [("md5", 32), ("sha1", 40), ("sha256", 64)])
def test_a_hash_is_known_by_its_length(algorithm: str, length: int) -> None:
    assert parse_line("aB" * (length // 2)) == Hash(algorithm, "ab" * (length // 2))


@pytest.mark.parametrize(
    "line",
    [
        "not a url",
        "word",
        "example.org and more",
        "http://",
        "http:///path",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "-x.example.org",
        "example..org",
        "1.2.3",
        "a" * 31,
        "a" * 128,
        "g" * 32,
        "٣" * 32,
        "http://x/\x00",
        "http://x/\x85",
        "http://x/" + "a" * MAX_URL,
        "user@example.org",
    ],
)
def test_neither_is_refused_with_the_line(line: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_line(line)
    assert str(caught.value) == f"'{line[:200]}' was neither a valid hash or url"


def test_lines_end_in_every_way_and_empty_ones_do_not_count() -> None:
    assert lines_of(" a \r\n\n\t\nb\rc") == ["a", "b", "c"]
    assert lines_of(" \n\t") == []


def test_too_many_lines_are_refused() -> None:
    assert len(lines_of("x\n" * MAX_LINES)) == MAX_LINES
    with pytest.raises(BadInput, match="strings: at most 1000 lines"):
        lines_of("x\n" * (MAX_LINES + 1))


@given(st.text())
def test_any_line_is_one_of_the_three(line: str) -> None:
    try:
        found = parse_line(line)
    except BadInput:
        return
    if isinstance(found, str):
        assert found.isprintable()
        assert " " not in found
        assert "://" in found


def test_a_long_line_takes_no_longer_than_it_should() -> None:
    with pytest.raises(BadInput):
        parse_line("a-" * 4000 + "!")
    with pytest.raises(BadInput):
        parse_line("a." * 4000 + "!")
