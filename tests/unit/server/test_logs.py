"""One line for each event, for a program or for a person, and no secret in any."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import aiohttp
import pytest
import structlog
from servekit import serving

from cuckoo_api.machinery import Secret
from cuckoo_api.server.logs import configure_logs
from cuckoo_api.settings import Settings

pytestmark = pytest.mark.usefixtures("_logging_is_put_back")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def fail() -> None:
    token = "secret"
    raise ValueError(f"{len(token)} letters")


def test_every_line_is_json_where_no_terminal_is() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    log = structlog.get_logger()
    with structlog.contextvars.bound_contextvars(task_id=7):
        log.info("machine.leased", machine="one", odd=object, pwd=Secret("s3"))
    try:
        fail()
    except ValueError:
        log.exception("bug")
    logging.getLogger("aiohttp").warning("of the %s", "library")

    leased, bug, library = lines(stream)
    assert (leased["event"], leased["machine"], leased["task_id"]) == ("machine.leased", "one", 7)
    assert (leased["level"], leased["odd"]) == ("info", "<class 'object'>")
    assert leased["pwd"] == "'***'"
    assert leased["timestamp"].endswith("Z")
    assert bug["exception"].endswith("ValueError: 6 letters")
    assert (library["event"], library["logger"]) == ("of the library", "aiohttp")
    assert library["level"] == "warning"


def test_a_person_reads_words_and_no_variables() -> None:
    stream = Terminal()
    configure_logs(stream=stream)
    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("bug", machine="one")

    text = stream.getvalue()
    assert "bug" in text
    assert "ValueError: 6 letters" in text
    assert "secret" not in text
    with pytest.raises(json.JSONDecodeError):
        json.loads(text.splitlines()[0])


@pytest.mark.parametrize(("debug", "events"), [(False, ["info"]), (True, ["debug", "info", "lib"])])
def test_debug_shows_more(debug: bool, events: list[str]) -> None:
    stream = io.StringIO()
    configure_logs(debug=debug, stream=stream)
    structlog.get_logger().debug("debug")
    structlog.get_logger().info("info")
    logging.getLogger("library").info("lib")

    assert [line["event"] for line in lines(stream)] == events


def test_what_is_no_text_is_logged_all_the_same() -> None:
    stream = io.StringIO()
    configure_logs(stream=stream)
    structlog.get_logger().info("results.refused", reason="name \udcff", task_id=3)

    [line] = lines(stream)
    assert (line["reason"], line["task_id"]) == (r"'name \udcff'", 3)


def test_a_new_set_up_takes_the_place_of_the_old() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logs(stream=first)
    configure_logs(stream=second)
    logging.getLogger("aiohttp").warning("once")

    assert first.getvalue() == ""
    assert [line["event"] for line in lines(second)] == ["once"]


async def test_no_token_is_logged(settings: Settings) -> None:
    stream = io.StringIO()
    configure_logs(debug=True, stream=stream)
    structlog.get_logger().info("settings", settings=repr(settings))
    async with serving(settings) as url, aiohttp.ClientSession() as session:
        for token in ("secret", "wr0ng-t0ken"):
            headers = {"Authorization": f"Bearer {token}"}
            path = f"{url}/tasks/list?token={token}"
            async with session.get(path, headers=headers) as response:
                assert response.status == (200 if token == "secret" else 401)

    requests = [line for line in lines(stream) if line["event"] == "request"]
    assert [(line["path"], line["status"]) for line in requests] == [
        ("/tasks/list", 200),
        ("/tasks/list", 401),
    ]
    assert "secret" not in stream.getvalue()
    assert "wr0ng-t0ken" not in stream.getvalue()
