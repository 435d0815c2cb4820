"""After a restart: what an earlier process left half done."""

from __future__ import annotations

import structlog

from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.task import Status
from cuckoo_api.store import Store

log = structlog.get_logger()


async def recover(store: Store, artefacts: Artefacts) -> None:
    """Put interrupted analyses back in the queue, and finish or undo interrupted deletions.

    Called once the fleet has switched off and unlocked every machine that an earlier process
    held, so that nothing runs any more for these tasks. Those that only lack their report the
    scheduler finds by itself.
    """
    for task_id in await store.tasks.running():
        if await store.tasks.transition(task_id, Status.RUNNING, Status.PENDING):
            log.warning("recovery.requeued", task_id=task_id)
    for task_id in artefacts.hidden():
        folder = artefacts.analysis(task_id)
        if await store.tasks.get(task_id) is None:
            await folder.remove()
        else:
            await folder.show()
