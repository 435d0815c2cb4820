"""What may be asked of an analysis later: stop it, report it anew, restart its guest, forget it."""

from __future__ import annotations

import json
import time

import pytest
from serverkit import DONE, Site

PERSISTS = b"""#!/bin/sh
cat > /usr/local/bin/by-cron <<'END'
#!/bin/sh
echo cron > /var/by-cron
END
chmod 755 /usr/local/bin/by-cron
echo "@reboot root /usr/local/bin/by-cron" > /etc/cron.d/planted
echo "echo login > /var/by-login" >> /root/.profile
printf '#!/bin/sh\\necho service > /var/by-service\\n' > /etc/init.d/S90planted
chmod 755 /etc/init.d/S90planted
printf '#!/bin/sh\\necho init > /var/by-init; exec sleep 600\\n' > /usr/local/sbin/by-init
chmod 755 /usr/local/sbin/by-init
echo "::respawn:/usr/local/sbin/by-init" >> /etc/inittab
printf '#!/bin/sh\\necho unit > /var/by-unit\\n' > /usr/local/sbin/by-unit
chmod 755 /usr/local/sbin/by-unit
mkdir -p /etc/systemd/system
cat > /etc/systemd/system/planted.service <<'END'
[Service]
ExecStart=-/usr/local/sbin/by-unit --now
[Install]
WantedBy=multi-user.target
END
"""


NEW_SIGNATURE = """
import re
from cuckoo_api.reporting.signatures import PlantedFile

class NewSignature(PlantedFile):
    name = "new_signature"
    description = "Was not there when the sample ran"
    severity = 1
    places = re.compile("^/tmp/once$")
"""
STAYS_UP = (
    PERSISTS
    + b"""\
for name in reboot busybox; do
    printf '#!/bin/sh\\nexit 0\\n' > "/usr/local/sbin/$name"
    chmod 755 "/usr/local/sbin/$name"
done
"""
)
"""It keeps its guest from restarting in good order."""


async def test_a_running_analysis_is_cancelled_and_reported(site: Site) -> None:
    task_id = await site.submit(b"#!/bin/sh\necho x > /tmp/x\nsleep 300\n", "long.sh", timeout=120)
    await site.running(task_id, b'"300"')
    assert site.session is not None
    begin = time.monotonic()
    async with site.session.post(f"/tasks/cancel/{task_id}") as response:
        assert (response.status, await response.json()) == (200, {"status": "OK"})
    assert (await site.task(task_id))["status"] == "cancelled"
    while site.namespace.pids_of("qemu-system"):
        assert time.monotonic() - begin < 30
    path = site.folder(task_id) / "reports" / "report.json"
    while not path.exists():
        assert time.monotonic() - begin < 60
    task = await site.task(task_id)
    assert task["status"] == "cancelled"
    assert "The analysis was cancelled" in task["errors"]
    report = await site.get(f"/tasks/report/{task_id}")
    assert any("long.sh" in p["command_line"] for p in report["behavior"]["processes"])
    await site.assert_nothing_held()


@pytest.mark.parametrize(("sample", "by"), [(PERSISTS, "guest"), (STAYS_UP, "hypervisor")])
async def test_a_reboot_analysis_shows_what_starts_by_itself(
    site: Site, sample: bytes, by: str
) -> None:
    first = (await site.analyse(sample, "persists.sh", timeout=30))["info"]["id"]
    answer = await site.get(f"/tasks/reboot/{first}")
    assert answer["task_id"] == first
    task = await site.until(answer["reboot_id"], *DONE)
    assert (task["status"], task["package"], task["custom"]) == ("reported", "reboot", str(first))
    assert task["errors"] == []
    report = await site.get(f"/tasks/report/{task['id']}")
    written = {d["filepath"]: d for d in report["dropped"]}
    for name in ("cron", "login", "service", "init", "unit"):
        content = site.folder(task["id"]) / written[f"/var/by-{name}"]["path"]
        assert content.read_text() == f"{name}\n"
    # what started by itself is marked, and what of it the sample had planted
    marked = {
        (p["command_line"], p["autostart"]["by"], p["autostart"]["restored"])
        for p in report["behavior"]["processes"]
        if p["autostart"]
    }
    assert marked >= {
        ("cron -f", "cron", False),
        ("/usr/local/bin/by-cron", "cron", True),
        ("/etc/init.d/S90planted start", "service", True),
        ("sleep 600", "service", True),
        ("/usr/local/sbin/by-unit --now", "service", True),
        ("/bin/bash -l -c :", "login", True),
    }
    assert report["info"]["restart"]["parent"] == first
    assert report["info"]["restart"]["restarted_by"] == by
    assert set(report["info"]["restart"]["restored"]) >= {"/root/.profile", "/etc/inittab"}
    [signature] = [s for s in report["signatures"] if s["name"] == "started_by_itself"]
    assert {"started by cron", "started by login", "started by service"} == {
        mark["description"] for mark in signature["marks"]
    }
    page = (site.folder(task["id"]) / "reports" / "report.html").read_text()
    assert "started by itself: cron, planted by the sample" in page
    # nobody ran the sample: it was what it had planted
    assert not any("persists.sh" in p["command_line"] for p in report["behavior"]["processes"])
    events = [json.loads(line) for line in site.log.splitlines() if line.startswith("{")]
    assert [e["by"] for e in events if e["event"] == "analysis.restarted"][-1] == by
    await site.assert_nothing_held()


async def test_a_report_is_made_anew_and_a_task_forgotten(site: Site) -> None:
    report = await site.analyse(b"#!/bin/sh\necho once > /tmp/once\n", "once.sh", timeout=30)
    task_id, sha256 = report["info"]["id"], report["target"]["file"]["sha256"]
    path = site.folder(task_id) / "reports" / "report.json"
    before = path.stat().st_ino
    # what is in the folder now counts, as with other settings or new rules
    listed = site.folder(task_id) / "files.json"
    entries = [json.loads(line) for line in listed.read_text().splitlines()]
    [dropped] = [entry for entry in entries if entry["filepath"]]
    listed.write_text(json.dumps(dropped | {"filepath": "/tmp/renamed"}) + "\n")
    (site.cwd / "conf" / "yara" / "new.yar").write_text(
        'rule newer { strings: $a = "/tmp/once" condition: $a }'
    )
    (site.cwd / "signatures" / "new.py").write_text(NEW_SIGNATURE)
    assert report["target"]["file"]["yara"] == []
    assert await site.get(f"/tasks/rereport/{task_id}") == {"success": True}
    assert (await site.until(task_id, "reported"))["errors"] == []
    assert path.stat().st_ino != before
    anew = await site.get(f"/tasks/report/{task_id}")
    assert [d["filepath"] for d in anew["dropped"]] == ["/tmp/renamed"]
    assert [rule["name"] for rule in anew["target"]["file"]["yara"]] == ["newer"]
    assert {"new_signature", "yara_match"} <= {s["name"] for s in anew["signatures"]}
    assert await site.get(f"/tasks/delete/{task_id}") == {"status": "OK"}
    assert site.session is not None
    for gone in (f"/tasks/view/{task_id}", f"/tasks/report/{task_id}", f"/files/get/{sha256}"):
        async with site.session.get(gone) as response:
            assert response.status == 404, gone
    for name in ("analyses", "binaries"):
        assert list((site.cwd / "storage" / name).iterdir()) == []
