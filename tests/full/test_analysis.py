"""A sample goes in, a real virtual machine runs it, a report comes out."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from serverkit import DONE, NewSite, Site

from cuckoo_api.guest.analyzer import PAYLOAD

DEMO = PAYLOAD / "demo" / "demo-sample.sh"
ELF_SOURCE = r"""
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(void) {
    if (fork() == 0) { execl("/bin/uname", "uname", "-a", (char *)0); _exit(1); }
    wait(0);
    int file = open("/tmp/from-elf", O_CREAT | O_WRONLY, 0600);
    (void)!write(file, "left by an ELF\n", 15);
    close(file);
    puts("said by an ELF");
    return 7;
}
"""

RULE = """
rule dropper : demo {
    meta: description = "Drops an updater"
    strings: $updater = "demo-updater"
    condition: filename == "demo-sample.sh" and #updater > 2
}
rule updater { strings: $log = ">> /var/log/demo-updater.log" condition: $log and filesize < 200 }
"""
SIGNATURE = """
from cuckoo_api.reporting.signatures import PlantedFile
import re

class DemoUpdater(PlantedFile):
    name = "demo_updater"
    description = "Installs the updater of the demo"
    severity = 2
    places = re.compile("^/usr/local/bin/demo-updater$")
"""


def command_lines(report: dict[str, Any]) -> list[str]:
    return [process["command_line"] for process in report["behavior"]["processes"]]


async def test_the_demo_sample_from_upload_to_report(site: Site) -> None:
    # read for each report: the server need not be restarted
    (site.cwd / "conf" / "yara" / "demo.yar").write_text(RULE)
    (site.cwd / "signatures" / "demo.py").write_text(SIGNATURE)
    report = await site.analyse(DEMO, "demo-sample.sh", timeout=60)
    sha256 = hashlib.sha256(DEMO.read_bytes()).hexdigest()
    assert report["debug"]["errors"] == []
    assert report["target"]["file"]["name"] == "demo-sample.sh"
    assert report["target"]["file"]["sha256"] == sha256
    assert report["info"]["machine"]["name"] == "cuckoo1"
    assert report["info"]["route"] == "sinkhole"
    # processes, with the child that worked in the background below the sample
    [root] = report["behavior"]["processtree"]
    assert root["command_line"] == "/tmp/demo-sample.sh"
    [child] = [p for p in root["children"] if p["command_line"] == "/tmp/demo-sample.sh"]
    assert [p["command_line"] for p in child["children"]] == [
        "sleep 0.2",
        "uname -a",
        "cat /etc/passwd",
    ]
    assert "rm -f /tmp/demo-sample.sh" in command_lines(report)
    # files: what was written, also when it was deleted again
    summary = report["behavior"]["summary"]
    assert "/etc/cron.d/demo-updater" in summary["file_written"]
    assert set(summary["file_deleted"]) >= {"/tmp/demo-temporary.dat", "/tmp/demo-sample.sh"}
    dropped = {entry["filepath"]: entry for entry in report["dropped"]}
    assert dropped["/tmp/demo-temporary.dat"]["md5"] == hashlib.md5(b"temporary data\n").hexdigest()
    # the network: the name, the request, and whom it went to; nothing of the sandbox's own
    network = report["network"]
    assert {(q["request"], q["type"]) for q in network["dns"]} == {
        ("updates.demo.test", "A"),
        ("updates.demo.test", "AAAA"),
    }
    assert network["domains"] == [{"domain": "updates.demo.test", "ip": "192.168.55.1"}]
    assert [h["uri"] for h in network["http"]] == ["http://updates.demo.test/payload"]
    assert network["hosts"] == ["192.168.55.1"]
    assert {flow["dport"] for flow in network["tcp"]} == {80}
    assert [item["dst"] for item in network["icmp"] if item["type"] == 8] == ["192.168.55.1"]
    assert summary["mutex"] == ["/run/demo-updater.pid"]
    # what it means, with evidence
    names = {signature["name"] for signature in report["signatures"]}
    assert names >= {"persistence_cron", "persistence_shell", "self_delete", "network_download"}
    assert names >= {"system_discovery", "yara_match", "demo_updater"}
    assert all(signature["marks"] for signature in report["signatures"])
    assert report["info"]["score"] > 5
    counted = {part["signature"]: part["points"] for part in report["info"]["scoring"]}
    assert counted.keys() == names
    assert counted["demo_updater"] == 1.5
    # what it looks like: the script itself, and what the user's own rules say of it and its files
    file, script = report["target"]["file"], report["static"]["script"]
    assert (script["language"], script["interpreter"]) == ("shell", "/bin/sh")
    assert script["notable"].keys() >= {"downloads", "makes_executable", "changes_persistence"}
    assert file["tlsh"].startswith("T1")
    matches = {match["name"]: match["tags"] for match in file["yara"]}
    assert matches == {"dropper": ["demo"], "shell_dropper": []}
    assert [m["name"] for m in dropped["/usr/local/bin/demo-updater"]["yara"]] == ["updater"]
    assert report["screenshots"]
    assert root["exit_code"] == 0
    assert root["ended"] > root["first_seen"]
    happened = [(event["category"], event["value"]) for event in report["behavior"]["timeline"]]
    assert happened[0] == ("command_line", "/tmp/demo-sample.sh")
    assert ("file_written", "/etc/cron.d/demo-updater") in happened
    assert "0600 /tmp/demo-temporary.dat" in summary["permissions_changed"]
    # what came over HTTP is a file
    body = network["http"][0]["resp"]
    folder = site.folder(report["info"]["id"])
    assert hashlib.sha256((folder / body["path"]).read_bytes()).hexdigest() == body["sha256"]
    # the same as a page
    page = (folder / "reports" / "report.html").read_text()
    assert "Plants a cron job" in page
    assert "data:image/jpeg;base64," in page
    assert "<script" not in page
    await site.assert_nothing_held()
    assert await site.stop() == 0
    await site.assert_nothing_left()


async def test_every_artefact_of_an_analysis_is_served(site: Site) -> None:
    task_id = await site.submit(DEMO, "demo-sample.sh", timeout=60, memory="yes")
    assert (await site.until(task_id, *DONE))["status"] == "reported"
    assert site.session is not None
    expected = {
        f"/tasks/screenshots/{task_id}": b"PK",
        f"/tasks/screenshots/{task_id}/1": b"\xff\xd8\xff",
        f"/pcap/get/{task_id}": b"\xd4\xc3\xb2\xa1",
        f"/files/get/{hashlib.sha256(DEMO.read_bytes()).hexdigest()}": b"#!/bin/sh",
    }
    for path, magic in expected.items():
        async with site.session.get(path) as response:
            assert response.status == 200, path
            assert (await response.content.read(len(magic))) == magic, path
    dump = site.folder(task_id) / "memory.dmp"
    with dump.open("rb") as file:
        assert file.read(4) == b"\x7fELF"
    task = await site.task(task_id)
    assert task["guest"]["name"] == "cuckoo1"
    assert task["guest"]["status"] == "stopped"
    assert task["errors"] == []
    assert task["duration"] > 0


async def test_an_elf_is_run_and_described(site: Site, tmp_path: Path) -> None:
    source, program = tmp_path / "sample.c", tmp_path / "sample"
    source.write_text(ELF_SOURCE)
    subprocess.run(["gcc", "-O1", "-static", "-o", program, source], check=True)
    report = await site.analyse(program, "sample", timeout=30)
    assert command_lines(report) == ["/tmp/sample", "uname -a"]
    assert "The sample ended with code 7." in "".join(report["debug"]["log"])
    [dropped] = [d for d in report["dropped"] if d["filepath"] == "/tmp/from-elf"]
    assert dropped["size"] == 15
    elf = report["static"]["elf"]
    assert elf["header"]["type"].lower().startswith("exec")
    assert any(section["name"] == ".text" for section in elf["sections"])


async def test_a_python_script_and_a_url(site: Site) -> None:
    script = b"import os\nopen('/tmp/by-python', 'w').write(os.environ['HOME'])\n"
    report = await site.analyse(script, "job.py", timeout=30)
    assert any(d["filepath"] == "/tmp/by-python" for d in report["dropped"])
    assert site.session is not None
    form = {"url": "http://files.example.test/tool.bin", "timeout": "30"}
    async with site.session.post("/tasks/create/url", data=form) as response:
        task_id = (await response.json())["task_id"]
    assert (await site.until(task_id, *DONE))["status"] == "reported"
    report = await site.get(f"/tasks/report/{task_id}")
    assert report["target"] == {"category": "url", "url": form["url"]}
    assert [h["uri"] for h in report["network"]["http"]] == [form["url"]]
    # what the package fetched, as the sinkhole answered it
    async with site.session.get(f"/tasks/report/{task_id}/package_files?tar=tar") as response:
        packed = io.BytesIO(await response.read())
    with tarfile.open(fileobj=packed) as archive:
        [member] = [m for m in archive.getmembers() if m.isfile()]
        file = archive.extractfile(member)
        assert file is not None
        fetched = file.read()
    assert member.name == "package_files/0_tool.bin"
    answered = site.folder(task_id) / report["network"]["http"][0]["resp"]["path"]
    assert fetched == answered.read_bytes() != b""


async def test_two_machines_work_at_once(site: Site) -> None:
    sleeper = b"#!/bin/sh\nsleep 600\n"  # neither ends while the other one comes up
    first = await site.submit(sleeper, "a.sh", timeout=600)
    second = await site.submit(sleeper, "b.sh", timeout=600)
    await site.running(first)
    await site.running(second)
    states = {m["name"]: m for m in (await site.get("/machines/list"))["machines"]}
    assert {m["status"] for m in states.values()} == {"running"}
    assert {m["task_id"] for m in states.values()} == {first, second}
    for task_id in (first, second):
        await site.cancel(task_id)
    await site.free()
    await site.assert_nothing_held()


async def test_nothing_of_one_analysis_is_left_for_the_next(site: Site) -> None:
    look = b"#!/bin/sh\nls /etc/cron.d /tmp > /var/seen; cat /root/.profile >> /var/seen\n"
    for _ in range(2):  # on the same machine, one after the other
        await site.analyse(DEMO, "demo-sample.sh", machine="cuckoo1", timeout=60)
    report = await site.analyse(look, "look.sh", machine="cuckoo1", timeout=30)
    [seen] = [d for d in report["dropped"] if d["filepath"] == "/var/seen"]
    text = (site.folder(report["info"]["id"]) / seen["path"]).read_bytes()
    assert b"look.sh" in text
    assert b"demo" not in text


@pytest.mark.parametrize("network", ["user", "bridge"])
async def test_without_a_route_a_guest_reaches_the_result_server_only(
    new_site: NewSite, network: str
) -> None:
    site = await new_site()
    conf = site.cwd / "conf" / "qemu.conf"
    conf.write_text(conf.read_text().replace("network = auto", f"network = {network}"))
    if network == "user":
        # the snapshots were taken on a bridge, and another network is another machine
        for snapshots in (site.cwd / "machinery" / "qemu").glob("*/snapshots"):
            snapshots.unlink()
        build = site.command("guest", "build", "--machines", "2")
        assert subprocess.run(build, check=False).returncode == 0
    await site.start()
    probe = b"""#!/usr/bin/env python3
import socket
def reach(ip, port):
    s = socket.socket(); s.settimeout(3)
    try:
        s.connect((ip, port)); s.sendall(b"?"); s.recv(1); return "open"
    except ConnectionRefusedError: return "refused"
    except OSError as error: return type(error).__name__
with open("/tmp/reached", "w") as f:
    for port in (22, 53, 80, 8090):
        print(port, reach("192.168.55.1", port), file=f)
    print("out", reach("192.0.2.1", 80), file=f)
"""
    report = await site.analyse(probe, "probe.py", timeout=40)
    [found] = [d for d in report["dropped"] if d["filepath"] == "/tmp/reached"]
    text = (site.folder(report["info"]["id"]) / found["path"]).read_text()
    assert "open" not in text, text
    assert len(text.splitlines()) == 5


MEMORY_SOURCE = r"""
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
static const char hidden[] = "LDLNSX,NOMX,VNSER";
static char *unpack(void) {
    int may = PROT_READ | PROT_WRITE | PROT_EXEC;
    char *page = mmap(0, 8192, may, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (size_t i = 0; i < sizeof hidden - 1; i++) page[i] = hidden[i] ^ 1;
    return page;
}
int main(void) {
    if (fork() == 0) { strcat(unpack(), "-of-the-one-that-ended"); _exit(0); }
    wait(0);
    strcat(unpack(), "-of-the-one-that-stayed");
    pause();
}
"""
MEMORY_RULE = """
rule unpacked { strings: $words = "MEMORY-ONLY-WORDS-of" condition: $words }
"""


async def test_what_was_in_memory_only_is_found_and_served(site: Site, tmp_path: Path) -> None:
    (site.cwd / "conf" / "yara" / "memory.yar").write_text(MEMORY_RULE)
    source, program = tmp_path / "sample.c", tmp_path / "packed"
    source.write_text(MEMORY_SOURCE)
    subprocess.run(["gcc", "-O1", "-static", "-o", program, source], check=True)
    report = await site.analyse(program, "packed", timeout=8, options="procmemdump=yes")
    task_id = report["info"]["id"]
    assert report["target"]["file"]["yara"] == []
    dumps = report["procmemory"]
    assert sorted(d["pid"] for d in dumps) == sorted(
        p["pid"] for p in report["behavior"]["processes"]
    )
    for dump in dumps:
        assert dump["filepath"] == "/tmp/packed"
        assert [rule["name"] for rule in dump["yara"]] == ["unpacked"]
        # the page that was written and may be run, where a debugger would look for it
        [page] = [r for r in dump["regions"] if r["protect"] == "rwx" and r["path"] == ""]
        assert page["size"] == page["kept"] == 8192
    assert {"yara_match"} <= {signature["name"] for signature in report["signatures"]}
    listed = await site.get(f"/memory/list/{task_id}")
    assert listed["dump_files"] == sorted(d["name"] for d in dumps)
    endings = set()
    assert site.session is not None
    for dump in dumps:
        async with site.session.get(f"/memory/get/{task_id}/{dump['pid']}") as response:
            data = await response.read()
        [page] = [r for r in dump["regions"] if r["protect"] == "rwx"]
        endings.add(data[page["offset"] :].partition(b"\0")[0])
    assert endings == {
        b"MEMORY-ONLY-WORDS-of-the-one-that-ended",
        b"MEMORY-ONLY-WORDS-of-the-one-that-stayed",
    }


TALKS = b"""#!/usr/bin/env python3
import fcntl, os, signal, socket, ssl, struct, subprocess
here = "192.168.55.1"
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.sendto(b"beacon", (here, 9999))
body = struct.pack("!HH", 7, 1) + b"ping from the sample"
words = struct.unpack("!%dH" % ((len(body) + 4) // 2), b"\\x08\\0\\0\\0" + body)
total = sum(words)
total = (total >> 16) + (total & 0xFFFF)
check = ~(total + (total >> 16)) & 0xFFFF
ping = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
ping.sendto(struct.pack("!BBH", 8, 0, check) + body, (here, 0))
try:
    raw = socket.create_connection((here, 80), 10)
    ssl.create_default_context().wrap_socket(raw, server_hostname="c2.tls.test")
except (OSError, ssl.SSLError) as error:
    print(type(error).__name__)
lock = open("/run/lock/only-one", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
name = socket.socket(socket.AF_UNIX)
name.bind(b"\\0one-of-a-kind")
port = socket.socket()
port.bind(("0.0.0.0", 4444))
port.listen()
os.mkdir("/tmp/made")
open("/tmp/moving", "w").close()
os.rename("/tmp/moving", "/tmp/made/moved")
os.symlink("/etc/passwd", "/tmp/made/link")
os.chmod("/tmp/made/moved", 0o4755)
open("/etc/hostname").read()
subprocess.run(["sh", "-c", "exit 3"])
if os.fork() == 0:
    os.kill(os.getpid(), signal.SIGSEGV)
os.wait()
print("said on the screen")
"""


async def test_every_section_shows_what_a_sample_did_in_the_guest(site: Site) -> None:
    report = await site.analyse(TALKS, "talks.py", timeout=40)
    behavior, network = report["behavior"], report["network"]
    summary = behavior["summary"]
    assert "/run/lock/only-one" in summary["mutex"]
    assert "@one-of-a-kind" in summary["mutex"]
    assert "0.0.0.0:4444" in summary["listens_on"]
    assert "192.168.55.1:80" in summary["connects_host"]
    assert "/tmp/made" in summary["directory_created"]
    assert ["/tmp/moving", "/tmp/made/moved"] in summary["file_moved"]
    assert "/tmp/made/link -> /etc/passwd" in summary["file_linked"]
    assert "04755 /tmp/made/moved" in summary["permissions_changed"]
    assert "/etc/hostname" in summary["file_read"]
    codes = {p["command_line"]: p["exit_code"] for p in behavior["processes"]}
    assert codes["sh -c 'exit 3'"] == 3
    assert -11 in [p["exit_code"] for p in behavior["processes"]]
    root = behavior["processes"][0]
    call = next(c for c in root["calls"] if c["api"] in ("symlink", "symlinkat"))
    assert (call["category"], call["status"], call["return_value"]) == ("file", 1, 0)
    assert call["arguments"]["target"] == "/etc/passwd"
    assert behavior["apistats"][str(root["pid"])]["connect"] >= 1
    assert {(u["dst"], u["dport"]) for u in network["udp"]} >= {("192.168.55.1", 9999)}
    pings = [p for p in network["icmp"] if p["type"] == 8]
    assert [(p["dst"], p["packets"]) for p in pings] == [("192.168.55.1", 1)]
    [hello] = network["tls"]
    assert (hello["sni"], hello["dport"], hello["chosen"]) == ("c2.tls.test", 80, None)
    assert len(hello["ja3"]) == 32
    assert hello["ja4"].startswith("t13d")
    capture = (site.folder(report["info"]["id"]) / "dump.pcap").read_bytes()
    assert network["pcap_sha256"] == hashlib.sha256(capture).hexdigest()
    assert "one-of-a-kind" in "".join(report["strings"])
    assert report["static"]["script"]["language"] == "python"
    assert report["screenshots"]
    assert {"setuid_file"} <= {signature["name"] for signature in report["signatures"]}
    assert report["metadata"]["output"]["trace"]["size"] > 0
    assert any("Started" in line for line in report["debug"]["log"])
