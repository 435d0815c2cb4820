"""An event that tells whether somebody waits for it: so a test knows that a loop is at rest."""

from __future__ import annotations

import asyncio
from typing import Literal


class Bell(asyncio.Event):
    """For the place of the event that a loop waits for between two looks."""

    is_waited_for = False

    @property
    def is_at_rest(self) -> bool:
        """Whether the loop waits, and has nothing to do."""
        return self.is_waited_for and not self.is_set()

    async def wait(self) -> Literal[True]:
        """As any event's."""
        self.is_waited_for = True
        await super().wait()
        self.is_waited_for = False
        return True
