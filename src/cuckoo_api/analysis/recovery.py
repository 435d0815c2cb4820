"""After a restart: what an earlier process left half done."""

from __future__ import annotations

import structlog

from cuckoo_api.model.task import Status, Task
from cuckoo_api.store import Store

log = structlog.get_logger()


async def recover(store: Store) -> list[Task]:
    """Put interrupted analyses back in the queue; return those that only lack their report.

    Called once the fleet has switched off and unlocked every machine that an earlier process
    held, so that nothing runs any more for these tasks.
    """
    unreported: list[Task] = []
    for task in await store.tasks.unfinished():
        if task.status is Status.COMPLETED:
            unreported.append(task)
        elif await store.tasks.transition(task.id, Status.RUNNING, Status.PENDING):
            log.warning("recovery.requeued", task_id=task.id)
    return unreported
