"""A stranger's plugin: made from the template, filled in as the docs show, nothing else touched.

Its machines are processes, and what runs in them is the real agent and the real analyzer.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from freshenv import ROOT, FreshEnvironment, run
from serverkit import Namespace, Site, configure

from cuckoo_api.guest.analyzer import PAYLOAD
from folderplugin import PAGE, fill_in

MACHINE = f"""#!/bin/sh
# a guest with processes of its own, all of which end with it; the clock is the host's
mkdir tmp
export TMPDIR="$PWD/tmp"
exec setpriv --bounding-set=-sys_time -- \\
    unshare --pid --fork --kill-child --mount-proc -- {sys.executable} agent.py 127.0.0.1 8000
"""
SAMPLE = b"""#!/bin/sh
echo dropped > dropped.txt
sh -c 'exec cat /etc/hostname > /dev/null'
rm "$0"
"""
REPORT_PAGE = ROOT / "docs" / "report.md"
REPORT_SHOWN = re.compile(
    r'^```\w+ title="(pyproject\.toml|cuckoo_report_csv\.py)"\n(.*?)^```$', re.MULTILINE | re.DOTALL
)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> FreshEnvironment:
    """The server alone, installed from this tree."""
    made = FreshEnvironment(tmp_path_factory.mktemp("fresh") / "venv")
    made.install(str(ROOT))
    return made


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folder of the machines, which has one."""
    snapshot = tmp_path / "folders/one/clean"
    snapshot.mkdir(parents=True)
    shutil.copy(PAYLOAD / "agent.py", snapshot)
    (snapshot / "run").write_text(MACHINE)
    (snapshot / "run").chmod(0o755)
    return tmp_path / "folders"


@pytest.fixture
async def site(
    environment: FreshEnvironment, root: Path, tmp_path: Path, namespace: Namespace
) -> AsyncIterator[Site]:
    """A working directory that is configured for the plugin, once the plugin is installed."""
    site = Site(tmp_path / "cwd", namespace, python=environment.python)
    yield site
    await site.stop()


def check(environment: FreshEnvironment, package: Path) -> subprocess.CompletedProcess[str]:
    """The package's own tests, in its own environment."""
    command = [environment.python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return subprocess.run(
        command, cwd=package, capture_output=True, text=True, check=False, timeout=60
    )


async def test_from_the_template_to_a_report(
    environment: FreshEnvironment, site: Site, root: Path, tmp_path: Path
) -> None:
    run(*environment.cuckoo, "plugin", "new", "folder", "--into", str(tmp_path))
    package = tmp_path / "cuckoo-machinery-folder"
    environment.install("--editable", str(package))
    unfilled = check(environment, package)
    assert "NotImplementedError: name machines of your hypervisor in LABELS" in unfilled.stdout
    assert "1 passed" in unfilled.stdout  # it is found

    fill_in(package)
    filled = check(environment, package)
    assert filled.returncode == 0, filled.stdout

    exporter = tmp_path / "exporter"
    exporter.mkdir()
    for name, text in REPORT_SHOWN.findall(REPORT_PAGE.read_text()):
        (exporter / name).write_text(text)
    environment.install(str(exporter))

    run(*site.command("init"))
    configure(site.cwd, "cuckoo", {"cuckoo.machinery": "folder", "cuckoo.freespace": "64"})
    [conf] = re.findall(r'```ini title="conf/folder.conf"\n(.*?)```', PAGE.read_text(), re.DOTALL)
    (site.cwd / "conf/folder.conf").write_text(conf.replace("/srv/folders", str(root)))
    await site.start()
    report = await site.analyse(SAMPLE, "sample.sh", timeout=20)

    assert report["info"]["machine"]["manager"] == "folder"
    assert {process["process_name"] for process in report["behavior"]["processes"]} == {
        "sample.sh",
        "cat",
        "rm",
    }
    assert [Path(file["filepath"]).name for file in report["dropped"]] == ["dropped.txt"]
    # and another stranger's, which adds to the report
    assert report["lines"] == {"count": SAMPLE.count(b"\n")}
    assert site.session is not None
    async with site.session.get(f"/tasks/report/{report['info']['id']}/csv") as answer:
        assert (answer.status, answer.content_type) == (200, "text/csv")
        rows = list(csv.reader((await answer.text()).splitlines()))
    expected = [
        [str(report["info"]["id"]), s["name"], str(s["severity"])] for s in report["signatures"]
    ]
    assert rows == expected != []
    [machine] = (await site.get("/machines/list"))["machines"]
    assert (machine["status"], machine["locked"]) == ("poweroff", False)
    assert await site.stop() == 0
    await site.namespace.empty()
