"""The report as a page: what it shows, and that nothing a sample chose acts on it."""

from __future__ import annotations

import base64
import io
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from markupsafe import escape
from PIL import Image

from cuckoo_api.model.task import Task
from cuckoo_api.reporting.job import Job, Request
from cuckoo_api.reporting.parts import Parts
from cuckoo_api.reporting.reporters import htmlreport
from cuckoo_api.reporting.reporters.htmlreport import policy, write_html_report
from cuckoo_api.reporting.service import make_report
from cuckoo_api.settings import ProcessingSection

pytestmark = pytest.mark.slow

Make = Callable[..., str]

ATTACKS = (
    '"><script>document.title="RAN"</script>',
    "'><img src=x onerror=\"document.title='RAN'\">",
    "</style></title></textarea><script>document.title='RAN'</script><!--",
    '<svg/onload=document.title="RAN">',
    "javascript:document.title='RAN'",
    "<iframe srcdoc=\"<script>parent.document.title='RAN'</script>\">",
    "{{ 7 * 7 }}{% raw %}{# #}",
    "<meta http-equiv=refresh content='0;url=https://example.test/'>",
    "&lt;b&gt;&#60;script&#62;",
    "\u202egnp.exe\u2066\x00\x1b[2J\r\n\ufeff",
)

TREE = {
    "pid": 10, "process_name": "sh", "command_line": "sh ./a", "first_seen": 1700000000.0,
    "ended": 1700000002.5, "exit_code": 0,
    "children": [
        {"pid": 11, "process_name": "cat", "command_line": "cat /etc/shadow",
         "first_seen": 1700000001.25, "ended": None, "exit_code": None, "children": []},
        {"pid": 12, "process_name": "id", "command_line": "id", "first_seen": 1700000002.0,
         "ended": 1700000002.0, "exit_code": -9, "children": [],
         "autostart": {"by": "cron", "restored": True}},
    ],
}  # fmt: skip
PARTS: dict[str, Any] = {
    "target": {
        "category": "file",
        "file": {"name": "a.sh", "size": 2048, "type": "shell script", "sha256": "ab" * 32,
                 "md5": "cd" * 16, "sha1": "ef" * 20, "ssdeep": "3:a:b", "tlsh": "T1A",
                 "yara": [{"name": "OneRule"}, {"name": "TwoRule"}]},
    },
    "static": {
        "elf": {"header": {"type": "EXEC", "entry": None}, "libraries": ["libc.so.6", "libm.so.6"],
                "sections": [{"name": ".text", "entropy": 6.5, "flags": ["X", "R"]}]},
    },
    "behavior": {
        "processtree": [TREE],
        "processes": [{"calls": [{"api": "never decoded"}]}],
        "summary": {
            "file_read": ["/etc/hosts"],
            "file_written": ["/tmp/x"],
            "file_moved": [["/old", "/new"]],
        },
        "timeline": [
            {"time": 1700000000.5, "pid": 10, "category": "file_moved", "value": ["/old", "/new"]},
            {"time": 1700000001.5, "pid": 11, "category": "connects_host", "value": "192.0.2.1:80"},
        ],
    },
    "network": {
        "hosts": ["192.0.2.1"],
        "domains": [{"domain": "evil.test", "ip": "192.0.2.1"}],
        "dns": [{"request": "evil.test", "type": "A",
                 "answers": [{"type": "A", "data": "192.0.2.1"}]}],
        "http": [{"method": "GET", "uri": "http://evil.test/gate.php", "status": 200,
                  "user-agent": "curl/8", "request_size": 0, "response_size": 1536}],
        "tls": [{"sni": "tls.test", "dst": "2001:db8::1", "dport": 443, "version": "TLS 1.3"}],
        "tcp": [{"src": "192.168.55.10", "sport": 4000, "dst": "192.0.2.1", "dport": 80,
                 "time": 0.5, "packets": 9, "bytes": 700}],
        "udp": [],
        "icmp": [{"src": "192.168.55.10", "dst": "192.0.2.7", "type": 8, "code": 0, "packets": 2}],
    },
    "dropped": [{"name": "x", "filepath": "/tmp/x", "size": 5, "type": "data",
                 "sha256": "12" * 32, "yara": [{"name": "MyRule"}]}],
    "procmemory": [{"name": "12-1", "filepath": "/tmp/evil", "size": 4096, "urls": ["http://m.test/"],
                    "yara": [{"name": "Unpacked"}]}],
    "signatures": [
        {"name": "reads_shadow", "description": "Reads the users' password hashes", "severity": 3,
         "ttp": ["T1003.008"], "markcount": 1,
         "marks": [{"category": "file", "ioc": "/etc/shadow", "description": None, "pid": 11,
                    "process_name": "cat"}]},
    ],
    "screenshots": [],
}  # fmt: skip


@pytest.fixture
def make(folder: Path, tmp_path: Path, job: Job) -> Make:
    """Makes the page of these parts and reads it."""
    sections = tmp_path / "sections"
    sections.mkdir()

    def run(
        parts: dict[str, Any] = PARTS, *, info: dict[str, Any] | None = None, errors: Any = ()
    ) -> str:
        for name, part in parts.items():
            Parts(str(sections)).keep(name, part)
        known = msgspec.structs.replace(
            job, info={"id": 7, "machine": {"name": "cuckoo1"}, "version": "1"} | (info or {})
        )
        request = Request(
            folder=str(folder), sections=str(sections), job=known, steps=[], messages=[],
            cwd=str(tmp_path), parent=0, size_limit=1 << 20, seconds=1, memory=0, cpu=0,
        )  # fmt: skip
        write_html_report(request, list(errors))
        assert [path.name for path in (folder / "reports").iterdir()] == ["report.html"]
        return (folder / "reports" / "report.html").read_text("utf-8")

    return run


class Page(HTMLParser):
    """All elements with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def jpeg(colour: str, size: tuple[int, int] = (320, 200)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "JPEG")
    return out.getvalue()


def attacked(value: Any, numbers: itertools.count[int], used: list[str]) -> Any:
    """The same shape, with an attack in the place of every text."""
    if isinstance(value, str):
        number = next(numbers)
        used.append(f"no{number}on")
        return f"no{number}on{ATTACKS[number % len(ATTACKS)]}"
    if isinstance(value, dict):
        return {key: attacked(item, numbers, used) for key, item in value.items()}
    if isinstance(value, list):
        return [attacked(item, numbers, used) for item in value]
    return value


def hostile_page(make: Make) -> tuple[str, list[str]]:
    used: list[str] = []
    numbers = itertools.count()
    parts = attacked({k: v for k, v in PARTS.items() if k != "target"}, numbers, used)
    parts["target"] = {"category": "file", "file": attacked(PARTS["target"]["file"], numbers, used)}
    parts["behavior"]["summary"] = {
        attacked(key, numbers, used): values for key, values in parts["behavior"]["summary"].items()
    }
    info = attacked(
        {"package": "", "platform": "", "options": "", "custom": "", "route": ""}, numbers, used
    )
    return make(parts, info=info, errors=[attacked("", numbers, used) for _ in ATTACKS]), used


def test_the_page_tells_the_whole_story(make: Make, folder: Path) -> None:
    noted = {"parent": 3, "restarted_by": "guest", "restored": ["/tmp/a", "/tmp/b"]}
    (folder / "reboot.json").write_bytes(msgspec.json.encode(noted))
    page = make(errors=["dump.pcap: cut at 7"], info={"duration": 12, "package": "shell"})

    text = Page(page).text
    for said in (
        "Analysis 7: demo-sample.sh", "3.0 / 10", "Analysis 7 · shell script", "2 KiB", "cuckoo1",
        "ab" * 32, "12 s",
        "Reads the users' password hashes reads_shadow · severity 3 · T1003.008",
        "file /etc/shadow cat (11)",
        "sh ./a 10 · +0.000 s to +2.500 s · exit code 0",
        "cat /etc/shadow 11 · +1.250 s · still running at the end",
        "After a restart by the guest, with 2 files of analysis 3 put back",
        "12-1 /tmp/evil Unpacked http://m.test/ 4 KiB", "Each is at /memory/get/7/",
        "id started by itself: cron, planted by the sample 12 · +2.000 s to +2.000 s · killed by",
        "+2.000 s · killed by signal 9",
        "from 2023-11-14 22:13:20 UTC by the guest's clock",
        "+0.500 s 10 File moved /old → /new", "+1.500 s 11 Connection 192.0.2.1:80",
        "File written 1 /tmp/x File moved 1 /old → /new File read 1 /etc/hosts",
        "evil.test A 192.0.2.1", "GET http://evil.test/gate.php curl/8 200 0 B 1.5 KiB",
        "tls.test [2001:db8::1]:443 TLS 1.3", "192.168.55.10:4000 192.0.2.1:80 +0.5 s 9 700 B",
        "192.168.55.10 192.0.2.7 8/0 2",
        "/tmp/x 5 B · data · MyRule " + "12" * 32,
        "elf.header.type EXEC elf.libraries libc.so.6, libm.so.6",
        "elf.sections name .text, entropy 6.5, flags X, R", "YARA OneRule, TwoRule",
        "Errors dump.pcap: cut at 7",
    ):  # fmt: skip
        assert said in text
    assert "never decoded" not in page


def test_an_analysis_in_which_nothing_happened_says_so(make: Make) -> None:
    text = Page(make({})).text

    assert "Options" not in text
    for said in ("None fired.", "No process was seen.", "Nothing was seen.", "Nothing was sent."):
        assert said in text


def test_screenshots_are_in_the_page_few_small_and_drawn_anew(folder: Path, make: Make) -> None:
    for number in range(30):
        (folder / "shots" / f"{number:04}.jpg").write_bytes(jpeg("red", (2000, 1000)))
    (folder / "shots" / "0000.jpg").write_bytes(b"\xff\xd8\xff no picture <script>")
    (folder / "shots" / "0029.jpg").write_bytes(jpeg("red") + b"<script>hidden behind it</script>")
    shots = [{"path": f"shots/{number:04}.jpg", "ocr": ""} for number in range(30)]

    page = Page(make({"screenshots": shots}))

    sources = [str(attributes["src"]) for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == htmlreport.MAX_PICTURES - 1
    for source in sources:
        head, _, data = source.partition(",")
        assert head == "data:image/jpeg;base64"
        picture = base64.b64decode(data)
        assert b"script" not in picture
        with Image.open(io.BytesIO(picture)) as image:
            assert max(image.size) <= 960
    assert "shots/0029.jpg" in page.text
    assert "12 of them are shown; all are at /tasks/screenshots/7." in page.text


def test_a_page_of_any_report_can_be_mailed(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    many = {
        "behavior": {
            "processtree": [TREE] * 300,
            "summary": {f"file_{n}": ["<" * 700] * 100 for n in range(15)},
            "timeline": [
                {"time": 1.0, "pid": 1, "category": "file_read", "value": "'" * 5000}
            ] * 2000,
        },
        "dropped": [{"name": "x" * 700, "filepath": "\x01" * 700, "size": 1}] * 1000,
    }  # fmt: skip
    assert len(make(many)) < 8 << 20
    monkeypatch.setattr(htmlreport, "MAX_PAGE", 50_000)

    page = make(many)

    assert len(page) < 500_000
    text = Page(page).text
    assert "1000 more are in report.json." in text
    assert text.endswith("The whole of it is in report.json.")


def test_what_a_sample_chose_is_text_and_nothing_else(make: Make) -> None:
    plain, (hostile, used) = Page(make(errors=["e"])), hostile_page(make)

    page = Page(hostile)

    # tag by tag the same page as that of a meek sample, but for the lines of errors
    known = {(tag, *sorted(attributes)) for tag, attributes in plain.tags}
    assert {(tag, *sorted(attributes)) for tag, attributes in page.tags} == known
    assert not known & {("script",), ("iframe",), ("svg",)}
    for tag, attributes in page.tags:
        assert tag == "img" or "src" not in attributes
        assert all(
            value.startswith("#") for key, value in attributes.items() if key == "href" and value
        )
    shown = [mark for mark in used if mark in page.text]
    assert len(shown) > 40
    assert ATTACKS[0] in page.text
    assert "49" not in page.texts
    # nothing turns the text around or hides in it
    assert "\\u202egnp.exe\\u2066\\x00\\x1b[2J\\r\\n\\ufeff" in page.text
    assert all(sign.isprintable() or sign == "\n" for sign in hostile)


WORKER = """
import json, sys
for step in json.loads(sys.stdin.readline())["steps"]:
    errors = ["html: no room"] if step == "html" and sys.argv[1] == "fails" else []
    print(json.dumps({"step": step, "errors": errors}), flush=True)
"""


@pytest.mark.parametrize(
    ("html", "outcome", "kept"), [(True, "works", True), (True, "fails", False), (False, "", False)]
)
async def test_a_page_of_an_earlier_report_is_not_left(
    folder: Path,
    tmp_path: Path,
    html: bool,
    outcome: str,
    kept: bool,
) -> None:
    page = folder / "reports" / "report.html"
    page.write_text("earlier")
    worker = (sys.executable, "-I", "-c", WORKER, outcome)
    task = Task(id=7, category="file", target="a.sh", added_on="2026-01-01 00:00:00")

    errors = await make_report(
        folder, task, None, ProcessingSection(), tmp_path, html=html, worker=worker
    )

    assert errors == (["html: no room"] if outcome == "fails" else [])
    assert page.exists() is kept


def dump_dom(*pages: Path) -> list[str]:
    """What Chromium has made of each page when it came to rest."""
    chromium = shutil.which("chromium")
    assert chromium is not None, "the Debian package chromium is not installed"
    runs = [
        subprocess.Popen(
            [
                chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                "--disable-dev-shm-usage", "--virtual-time-budget=2000",
                f"--user-data-dir={page.with_suffix('.profile')}", "--dump-dom", page.as_uri(),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for page in pages
    ]  # fmt: skip
    try:
        return [run.communicate(timeout=60)[0] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()


def test_no_script_runs_in_chromium(make: Make, tmp_path: Path) -> None:
    hostile, _ = hostile_page(make)
    css = (htmlreport.PAGE / "report.css").read_text("utf-8")
    meta = f'<meta http-equiv="Content-Security-Policy" content="{escape(policy(css))}">'
    assert meta in hostile
    # escaping alone, in a page in which scripts do run
    escaped = hostile.replace(meta, "").replace(
        "<body>", "<body><script>document.body.className = 'scripts-run'</script>"
    )
    # the policy alone, as if escaping had failed
    planted = "<script>document.title='RAN'</script><img src=x onerror=\"document.title='RAN'\">"
    broken = hostile.replace("<body>", f"<body>{planted}")
    paths = [tmp_path / "escaped.html", tmp_path / "broken.html"]
    for path, text in zip(paths, (escaped, broken), strict=True):
        path.write_text(text)

    seen_escaped, seen_broken = dump_dom(*paths)

    for seen in (seen_escaped, seen_broken):
        assert "<title>Analysis 7: demo-sample.sh</title>" in seen
        assert ATTACKS[0] in Page(seen).text
    assert '<body class="scripts-run">' in seen_escaped
    assert "scripts-run" not in seen_broken
