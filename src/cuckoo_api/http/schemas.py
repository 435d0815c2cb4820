"""What requests and responses look like, where the model's own types do not say it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from cuckoo_api.model import sample, task


class TaskCreated(msgspec.Struct, frozen=True, omit_defaults=True):
    """A submission was accepted; sample and task are on the disk."""

    task_id: int
    task_ids: list[int] | msgspec.UnsetType = msgspec.UNSET
    """Only for several files: one id each, in their order."""


class Submitted(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a submission of several things."""

    submit_id: int
    """The number that its tasks share."""
    task_ids: list[int]
    errors: list[str]
    """A sentence about each thing that became no task."""


class Done(msgspec.Struct, frozen=True):
    """It is done."""

    status: str = "OK"


class Rescheduled(Done, frozen=True, kw_only=True):
    """The task was submitted once more."""

    task_id: int
    """The new one's."""


class Rereported(msgspec.Struct, frozen=True):
    """Whether there is anything to make a report of."""

    success: bool


class RebootCreated(msgspec.Struct, frozen=True, kw_only=True):
    """A reboot analysis was submitted."""

    task_id: int
    """The analysis that it follows."""
    reboot_id: int


class DumpList(msgspec.Struct, frozen=True):
    """The dumps of processes of an analysis."""

    dump_files: list[str]


class SampleView(sample.Sample, frozen=True, kw_only=True):
    """A sample with the ids of its tasks."""

    tasks: list[int]


class Health(msgspec.Struct, frozen=True):
    """The server answers."""

    status: str = "ok"


class Readiness(msgspec.Struct, frozen=True):
    """``problems`` is empty where the server may take work."""

    message: str
    problems: list[str]


# -- for the document only ----------------------------------------------------------------------


def _or_empty(name: str) -> Meta:
    """A component, or ``{}``: a union that msgspec cannot decode and Cuckoo answers."""
    return Meta(
        extra_json_schema={
            "anyOf": [
                {"$ref": f"#/components/schemas/{name}"},
                {"type": "object", "maxProperties": 0},
            ]
        }
    )


class Task(task.Task, frozen=True, kw_only=True):
    """A task, from its submission to its report."""

    guest: Annotated[dict[str, Any], _or_empty("Guest")] = msgspec.field(default_factory=dict)
    """``{}`` until a machine was started for it."""
    sample: Annotated[dict[str, Any], _or_empty("Sample")] = msgspec.field(default_factory=dict)
    """``{}`` for a URL."""


_FLAG = Meta(extra_json_schema={"enum": ["1", "true", "yes", "on", "0", "false", "no", "off", ""]})


class SubmissionForm(msgspec.Struct, frozen=True, kw_only=True):
    """Fields of every submission."""

    package: Annotated[str, Meta(description="Analysis package; empty: by the file's type")] = ""
    timeout: Annotated[int, Meta(ge=0, description="Seconds; 0: the server's default")] = 0
    priority: Annotated[int, Meta(ge=1, description="1 to 3; larger ones are accepted")] = 1
    options: Annotated[str, Meta(description="key=value,key=value for the analyzer")] = ""
    machine: Annotated[str, Meta(description="Name or label of the machine to use")] = ""
    platform: Annotated[str, Meta(description="The guest's system, like linux or windows")] = ""
    tags: Annotated[str, Meta(description="What the machine must have, comma-separated")] = ""
    custom: Annotated[str, Meta(description="Any text; the task shows it again")] = ""
    owner: Annotated[str, Meta(description="Whose task it is")] = ""
    clock: Annotated[str, Meta(description="The guest's clock: %m-%d-%Y %H:%M:%S")] = ""
    memory: Annotated[str, _FLAG, Meta(description="Dump the machine's whole memory")] = ""
    enforce_timeout: Annotated[str, _FLAG, Meta(description="Run for the whole timeout")] = ""
    callback: Annotated[str, Meta(description="Address to POST to when the task has ended")] = ""


class FileForm(SubmissionForm, frozen=True, kw_only=True):
    """Fields of a file submission."""

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})]
    """May be repeated: one task each."""
    unique: Annotated[str, _FLAG, Meta(description="Refuse a file that was submitted before")] = ""


class UrlForm(SubmissionForm, frozen=True, kw_only=True):
    """Fields of a URL submission."""

    url: Annotated[str, Meta(min_length=1, description="The address to open in the guest")]


class SubmitForm(SubmissionForm, frozen=True, kw_only=True):
    """Fields of a submission of several things; one of the first three must hold something."""

    file: Annotated[str, Meta(extra_json_schema={"format": "binary"})] = ""
    """May be repeated. An archive becomes one task for each member that is worth running."""
    files: Annotated[str, Meta(extra_json_schema={"format": "binary"})] = ""
    """The same."""
    strings: Annotated[
        str, Meta(description="One a line: URL, domain, or hash of a file that VirusTotal has")
    ] = ""
