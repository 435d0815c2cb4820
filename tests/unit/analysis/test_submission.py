"""What a submission's fields may hold, and the words of the refusal when they do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cuckoo_api.analysis.submission import (
    base_name,
    check_machines,
    check_route,
    fits,
    parse_bool,
    parse_fields,
    parse_options,
)
from cuckoo_api.model.errors import BadInput
from cuckoo_api.model.machine import Machine
from cuckoo_api.model.task import NewTask


def machine(name: str, platform: str = "linux", tags: tuple[str, ...] = ()) -> Machine:
    return Machine(
        id=1,
        name=name,
        label=f"{name}-label",
        manager="fake",
        ip="192.0.2.1",
        platform=platform,
        tags=list(tags),
        resultserver_ip="192.0.2.254",
        resultserver_port=2042,
    )


def task(**fields: object) -> NewTask:
    return NewTask(category="file", target="x", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("word", ["1", "true", "YES", "On", " yes "])
def test_words_for_true(word: str) -> None:
    assert parse_bool("memory", word) is True


@pytest.mark.parametrize("word", ["", "0", "False", "no", "OFF"])
def test_words_for_false(word: str) -> None:
    assert parse_bool("memory", word) is False


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("memory", "garbage", "memory: expected one of 1, true"),
        ("enforce_timeout", "2", "enforce_timeout: expected one of"),
        ("timeout", "abc", "timeout: expected a whole number from 0"),
        ("timeout", "-5", "timeout: expected"),
        ("timeout", "0x10", "timeout: expected"),
        ("timeout", "1" * 30, "timeout: expected"),
        ("timeout", "٣", "timeout: expected"),
        ("priority", "high", "priority: expected a whole number from 1"),
        ("priority", "0", "priority: expected"),
        ("clock", "2012-12-12 12:12:12", "clock: expected month-day-year"),
        ("clock", "13-40-2016 00:00:00", "clock: expected"),
        ("options", "free", "options: expected key=value"),
        ("options", "=x", "options: expected key=value"),
        ("package", "../../etc", "package: expected"),
        ("custom", "a\0b", "custom: expected"),
        ("owner", "x" * 70_000, "owner: expected at most 65536"),
    ],
)
def test_a_value_that_does_not_parse_is_named(field: str, value: str, expected: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_fields({field: value})
    assert str(caught.value).startswith(expected)
    assert caught.value.status == 400
    assert len(str(caught.value)) < 400


def test_all_fields() -> None:
    parsed = parse_fields(
        {
            "package": "pdf",
            "timeout": "60",
            "priority": "9",
            "options": "a=1, b = x=y ,,c=",
            "machine": " cuckoo1 ",
            "platform": "windows",
            "tags": "t1, t2,t1,",
            "custom": "my é custom",
            "owner": "bob",
            "clock": "12-25-2016 23:59:59",
            "memory": "1",
            "enforce_timeout": "on",
            "nosuch": "ignored",
        }
    )
    assert NewTask(category="file", target="x", **parsed) == task(
        package="pdf",
        timeout=60,
        priority=9,
        options={"a": "1", "b": "x=y", "c": ""},
        machine="cuckoo1",
        platform="windows",
        tags=["t1", "t2"],
        custom="my é custom",
        owner="bob",
        clock="2016-12-25 23:59:59",
        memory=True,
        enforce_timeout=True,
    )


def test_empty_fields_mean_the_defaults() -> None:
    names = ("package", "timeout", "priority", "options", "machine", "tags", "clock", "memory")
    assert task(**parse_fields(dict.fromkeys(names, ""))) == task()


@given(st.text())
def test_options_parse_or_are_refused(text: str) -> None:
    try:
        options = parse_options(text)
    except BadInput:
        return
    assert all(key == key.strip() != "" for key in options)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("été €.exe", "été €.exe"),
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\x\\evil.doc", "evil.doc"),
        ("a\x00b\nc", "ab_c"),
        ("..", "sample"),
        ("", "sample"),
        ("dir/", "sample"),
    ],
)
def test_a_path_in_a_name_is_cut_to_its_last_part(name: str, kept: str) -> None:
    assert base_name(name) == kept


@given(st.text())
def test_any_name_gives_a_harmless_base_name(text: str) -> None:
    name = base_name(text)
    assert name not in ("", ".", "..")
    assert not set(name) & set("/\\\0\n\r")
    assert len(name) <= 255


def test_a_machine_is_asked_for_by_name_or_label() -> None:
    machines = [machine("one"), machine("two", "windows", ("office",))]
    check_machines(task(machine="one"), machines)
    check_machines(task(machine="two-label"), machines)
    with pytest.raises(BadInput, match="no 'three'; there is one, two"):
        check_machines(task(machine="three"), machines)


def test_platform_and_tags_that_no_machine_has() -> None:
    machines = [machine("one"), machine("two", "windows", ("office",))]
    check_machines(task(platform="windows", tags=["office"]), machines)
    with pytest.raises(BadInput, match=r"linux, office.*one \(linux\); two \(windows, office\)"):
        check_machines(task(platform="linux", tags=["office"]), machines)


def test_without_machines_everything_may_wait() -> None:
    check_machines(task(machine="three", platform="darwin", tags=["x"]), [])


def test_fits_asks_for_all_tags() -> None:
    assert fits(task(tags=["a", "b"]), machine("m", tags=("b", "c", "a")))
    assert not fits(task(tags=["a", "b"]), machine("m", tags=("a",)))


def test_a_route_that_is_not_offered_is_refused() -> None:
    check_route(task(), {"none"})
    check_route(task(options={"route": "none"}), {"none"})
    with pytest.raises(BadInput, match="route='tor' is not offered; there is none"):
        check_route(task(options={"route": "tor"}), {"none"})
