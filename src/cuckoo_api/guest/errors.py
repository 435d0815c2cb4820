"""What can go wrong between the host and the agent in a guest."""

from __future__ import annotations

from cuckoo_api.model.errors import CuckooError


class GuestError(CuckooError):
    """The guest did not do what was asked. ``retry`` tells whose fault it is likely to be."""

    code = "guest"

    retry = True
    """True: the machine is suspect, another one should try. False: every machine would fail."""


class AgentUnreachable(GuestError):
    """No connection, no answer in time, or the connection broke."""

    code = "agent_unreachable"


class AgentRefused(GuestError):
    """The agent answered with an error. ``agent_status`` is its HTTP status."""

    code = "agent_refused"

    def __init__(self, message: str, agent_status: int) -> None:
        super().__init__(message)
        self.agent_status = agent_status


class BadAnswer(GuestError):
    """The agent's answer is too long, or not what its protocol says."""

    code = "bad_agent_answer"


class NoAnalyzer(GuestError):
    """There is no analyzer for the platform of the machine."""

    code = "no_analyzer"
    retry = False
