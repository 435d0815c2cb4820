"""A task that is deleted while something is still made of it."""

from __future__ import annotations

import asyncio

import pytest
from fakekit import Site, report_here
from structlog.testing import capture_logs

from cuckoo_api.reporting import service as reporting
from cuckoo_api.testing.fake import scripts
from waiting import PATIENCE

pytestmark = pytest.mark.slow


async def test_a_cancelled_task_is_deleted_in_the_middle_of_its_report(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("one", scripts.hangs)
    await site.start()
    task_id = await site.submit()
    await site.running("one")
    made = asyncio.Event()

    async def delete_first(*arguments: object) -> str | None:
        await site.get(f"/tasks/delete/{task_id}")
        try:
            return await report_here(*arguments)  # type: ignore[arg-type]  # the service's own
        finally:
            made.set()

    monkeypatch.setattr(reporting, "_run", delete_first)
    with capture_logs() as logs:
        await site.post(f"/tasks/cancel/{task_id}")
        async with asyncio.timeout(PATIENCE):
            await made.wait()
        await site.free()
        await site.stop()
    assert [log["event"] for log in logs if log["log_level"] == "error"] == []
    assert not site.folder(task_id).exists()
    async with site.store() as store:
        assert await store.tasks.get(task_id) is None
