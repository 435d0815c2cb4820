"""What goes for good: a task with all that is its own, or its files without its report."""

from __future__ import annotations

from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.errors import Conflict, CuckooError, NotFound
from cuckoo_api.store import BUSY, Store


async def delete_task(store: Store, artefacts: Artefacts, task_id: int) -> None:
    """Forget a task: its row, its results, and its sample when nothing else has it.

    NotFound; Conflict while it runs or its report is made. One that was cancelled goes at once, and
    what is being made of it with it. Broken off at any point, the task is whole again or gone after
    the next start.
    """
    folder = artefacts.analysis(task_id)
    task = await store.tasks.get(task_id)
    if task is None:
        raise NotFound("Task not found")
    if task.status in BUSY:
        raise Conflict("The task is currently being processed, cannot delete")
    await folder.hide()
    try:
        sha256 = await store.tasks.delete(task_id)
    except CuckooError:
        await folder.show()
        raise
    await folder.remove()
    if sha256:
        await forget_binary(store, artefacts, sha256)


async def forget_binary(store: Store, artefacts: Artefacts, sha256: str) -> None:
    """Remove a sample's file, unless a row refers to it or an upload has it in hand."""

    async def is_wanted() -> bool:
        return await store.samples.find("sha256", sha256) is not None

    await artefacts.forget_binary(sha256, is_wanted)


async def trim_task(store: Store, artefacts: Artefacts, task_id: int) -> bool:
    """Remove the files of a task and keep its report; whether that was done.

    Not while it is in hand. Broken off, the rest goes when it is trimmed again; meanwhile no report
    is made of what is left.
    """
    folder = artefacts.analysis(task_id)
    if not await folder.begin_trim():
        return False
    # only now: whoever asks for another report looks at the folder after changing the state
    task = await store.tasks.get(task_id)
    if task is None or task.status in BUSY:
        await folder.undo_trim()
        return False
    await folder.finish_trim()
    return True
