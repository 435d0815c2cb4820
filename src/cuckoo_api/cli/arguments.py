"""What the commands for tasks, tokens and shells take. It imports nothing: --help is quick."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from typing import Any

RAW: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}

LIST_EPILOG = """\
examples:
  cuckoo list --status pending
  cuckoo list --owner soc --completed-after 2026-01-31
  cuckoo list --json | jq '.[].id'
"""
REPORT_EPILOG = """\
examples:
  cuckoo report 12                            the gist of it
  cuckoo report 12 --json > report.json       all of it
  cuckoo report 12 --element network          one part of it, as JSON
  cuckoo report 12 --format dropped -o dropped.tar.bz2
"""
ADDING = """\
examples:
  cuckoo token add dashboard --rights read
  cuckoo token add cortex --rate 600 --burst 50
  export CUCKOO_TOKEN=$(cuckoo token add me --rights admin)
"""
COMPLETION_EPILOG = """\
bash:  cuckoo completion bash > ~/.local/share/bash-completion/completions/cuckoo
zsh:   cuckoo completion zsh > ~/.zfunc/_cuckoo    with ~/.zfunc in fpath, before compinit
fish:  cuckoo completion fish > ~/.config/fish/completions/cuckoo.fish
"""

PLUGIN_EPILOG = """\
example:
  cuckoo plugin new acme
  cd cuckoo-machinery-acme
  pip install -e .                  into the environment of the server
  pytest                            the conformance suite says what is missing

It writes a package that the server finds as soon as it is installed: pyproject.toml with the
entry point, a backend whose methods say what they have to do, conf/acme.conf, the conformance
test. Nothing in it pretends to work: a method that is not written yet says so. The contract is
in docs/machinery.md.
"""

MACHINES_EPILOG = """\
examples:
  cuckoo machines                             of the running server
  cuckoo machines discover kvm                what could be configured
  cuckoo machines check win7                  does it work? (the server is stopped)
"""
DISCOVER_EPILOG = """\
example:
  cuckoo machines discover kvm >> ~/.cuckoo/conf/kvm.conf
  editor ~/.cuckoo/conf/kvm.conf              keep what you want, name it in 'machines ='
  cuckoo machines check
"""

SHELLS = ("bash", "zsh", "fish")
STATUSES = (
    "pending",
    "running",
    "completed",
    "reported",
    "recovered",
    "cancelled",
    "failed_analysis",
    "failed_processing",
    "failed_reporting",
)
RIGHTS = ("read", "submit", "admin")


class _Formats(tuple[str, ...]):
    """Those of the core are proposed; packages on the server's side may bring others."""

    __slots__ = ()

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and re.fullmatch("[a-z][a-z0-9_]{0,31}", word) is not None


FORMATS = _Formats(("json", "html", "all", "dropped", "package_files"))
COMPRESSIONS = ("bz2", "gz", "tar", "zst")

Commands = Any  # argparse's own type of it is private


def add_client_arguments(parser: argparse.ArgumentParser) -> None:
    """What every client of a running server takes."""
    parser.add_argument("--url", help="the server (default: as conf/cuckoo.conf says)")
    parser.add_argument(
        "--token", help="its token (default: $CUCKOO_TOKEN, else as conf/cuckoo.conf says)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_task_commands(commands: Commands) -> None:
    """List, view, report, cancel, delete, reschedule."""
    _add_list(commands)
    view = commands.add_parser(
        "view",
        help="show a task",
        description="Show a task: what was asked for, where it stands, what went wrong.",
    )
    view.add_argument("id", type=number, metavar="ID")
    add_client_arguments(view)
    _add_report(commands)
    for name, help_, text in (
        (
            "cancel",
            "take tasks out of the queue, or stop their machines",
            "Cancel tasks. Of one that runs, what was collected so far is reported.",
        ),
        (
            "delete",
            "remove tasks with their results",
            "Remove tasks, their results, and samples that no other task has, for good.",
        ),
        (
            "reschedule",
            "submit tasks once more",
            "Submit tasks once more, as new ones. The old ones become 'recovered'.",
        ),
    ):
        command = commands.add_parser(name, help=help_, description=text)
        command.add_argument("ids", type=number, nargs="+", metavar="ID")
        if name == "reschedule":
            command.add_argument(
                "--priority", type=number, help="1 to 3, higher goes first (default: as it was)"
            )
        add_client_arguments(command)


def _add_list(commands: Commands) -> None:
    listed = commands.add_parser(
        "list",
        help="list tasks",
        description="List tasks: those not completed first, then by completion. Options narrow it.",
        epilog=LIST_EPILOG,
        **RAW,
    )
    listed.add_argument("--status", choices=STATUSES, metavar="STATUS", help=", ".join(STATUSES))
    listed.add_argument("--owner", help="submitted with this owner")
    listed.add_argument("--target", help="this file name or URL")
    listed.add_argument("--category", choices=("file", "url", "archive"), help="what was submitted")
    listed.add_argument("--tags", help="has all of these, comma-separated")
    listed.add_argument("--machine", help="asked for, or ran on, this machine")
    listed.add_argument("--sample", type=number, metavar="ID", help="of this sample")
    listed.add_argument(
        "--completed-after",
        type=moment,
        metavar="DATE",
        help="YYYY-MM-DD, with HH:MM:SS behind it if need be, in UTC; or Unix time",
    )
    listed.add_argument("--after-id", type=number, metavar="ID", help="with a greater id")
    listed.add_argument("--limit", type=number, metavar="N", help="at most so many (default: all)")
    listed.add_argument("--offset", type=number, metavar="N", help="leave out the first so many")
    add_client_arguments(listed)


def _add_report(commands: Commands) -> None:
    report = commands.add_parser(
        "report",
        help="show a report, or fetch it and its files",
        description="Show a report's gist; or fetch the report, a part of it, or files as an "
        "archive.",
        epilog=REPORT_EPILOG,
        **RAW,
    )
    report.add_argument("id", type=number, metavar="ID")
    report.add_argument("--element", metavar="KEY", help="one outermost part of it, as JSON")
    report.add_argument(
        "--format",
        choices=FORMATS,
        help="as it is, for --output; the last three are archives; packages on the server may "
        "bring others",
    )
    report.add_argument(
        "--tar", choices=COMPRESSIONS, help="an archive's compression (default: bz2)"
    )
    report.add_argument(
        "-o", "--output", metavar="FILE", help="where to (default: standard output)"
    )
    add_client_arguments(report)


def add_machines_command(commands: Commands) -> None:
    """Show, check, discover."""
    machines = commands.add_parser(
        "machines",
        help="show the machines and what they do now; check them, find others",
        description="Without an action: ask the running server for its machines, and show what\n"
        "each does now, which task has it, and why it gets none.",
        epilog=MACHINES_EPILOG,
        **RAW,
    )
    add_client_arguments(machines)
    actions = machines.add_subparsers(dest="action", metavar="ACTION")
    add_check(
        actions,
        "Do with each machine what an analysis does: restore its snapshot, wait for its agent, "
        "cut the power; and say how long each took. What is known to be wrong with a machine is "
        "said, and it is not started. Exit code 1 when one fails. The server must not be running.",
    )
    discover = actions.add_parser(
        "discover",
        help="list the machines that a hypervisor has, as sections for its file",
        description="Ask a hypervisor for all its machines and print a section for each, to be\n"
        "pasted into conf/BACKEND.conf. How to reach it is read from that file; [cuckoo]\n"
        "machinery need not name it yet. Nothing is changed. The server must not be running.",
        epilog=DISCOVER_EPILOG,
        **RAW,
    )
    discover.add_argument("backend", metavar="BACKEND", help="as for [cuckoo] machinery: kvm …")
    discover.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_check(actions: Commands, text: str) -> None:
    """The proof of machines."""
    check = actions.add_parser(
        "check", help="revert, reach and stop machines, and time each step", description=text
    )
    check.add_argument("names", nargs="*", metavar="NAME", help="only these (default: all)")
    check.add_argument("--json", action="store_true", help="print JSON, for programs")


def add_token_command(commands: Commands) -> None:
    """Add, list, revoke."""
    token = commands.add_parser(
        "token",
        help="give clients tokens of their own, and take them away",
        description="Tokens for the API besides [cuckoo] api_token, in conf/tokens.conf. The "
        "server sees a change within a second.",
        epilog=ADDING,
        **RAW,
    )
    actions = token.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = actions.add_parser(
        "add",
        help="make a token and print it, once",
        description="Make a token and print it. It is kept nowhere: note it down.",
        epilog=ADDING,
        **RAW,
    )
    add.add_argument("name", metavar="NAME", help="who uses it; the log shows it")
    add.add_argument(
        "--rights",
        choices=RIGHTS,
        default="submit",
        help="read: look only; submit: also submit and cancel; admin: also delete "
        "(default: submit)",
    )
    add.add_argument(
        "--rate", type=number, default=0, metavar="N", help="requests a minute (default: no limit)"
    )
    add.add_argument(
        "--burst",
        type=number,
        default=0,
        metavar="N",
        help="how many of them at once (default: a whole minute's)",
    )
    listed = actions.add_parser(
        "list", help="show the tokens' names and rights", description="Show who has a token."
    )
    listed.add_argument("--json", action="store_true", help="print JSON, for programs")
    revoke = actions.add_parser(
        "revoke",
        help="make a token worthless",
        description="Remove a token: who uses it is refused from then on.",
    )
    revoke.add_argument("name", metavar="NAME")


def add_webserver_options(api: argparse.ArgumentParser) -> None:
    """Configurations of web servers, in place of serving."""
    prints = api.add_mutually_exclusive_group()
    prints.add_argument(
        "--nginx",
        action="store_true",
        help="print a site for nginx, which then listens there: before uWSGI, or before a server "
        "that listens on --socket",
    )
    prints.add_argument(
        "--uwsgi", action="store_true", help="print the file that lets uWSGI serve the API"
    )


def add_plugin_command(commands: Commands) -> None:
    """What an author of a machinery plugin begins with."""
    plugin = commands.add_parser("plugin", help="begin a machinery plugin of your own")
    actions = plugin.add_subparsers(dest="action", metavar="ACTION", required=True)
    new = actions.add_parser(
        "new",
        help="write a package to fill in",
        description="Write cuckoo-machinery-NAME, a package that lets the server drive another "
        "hypervisor once you have filled it in. Never overwrites anything.",
        epilog=PLUGIN_EPILOG,
        **RAW,
    )
    new.add_argument(
        "name",
        type=plugin_name,
        metavar="NAME",
        help="the word for [cuckoo] machinery: a letter, then letters and digits, all lower case",
    )
    new.add_argument(
        "--into", default=".", metavar="DIR", help="the folder to write it to (default: this one)"
    )


def add_completion_command(commands: Commands) -> None:
    """Completion scripts."""
    completion = commands.add_parser(
        "completion",
        help="print a script that lets a shell complete these commands",
        description="Print the completion script for a shell.",
        epilog=COMPLETION_EPILOG,
        **RAW,
    )
    completion.add_argument("shell", choices=SHELLS)


def number(text: str) -> int:
    """A whole number, not negative."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return int(text)


def plugin_name(text: str) -> str:
    """A word that is good for a file, a section, a package and a class."""
    if not re.fullmatch(r"[a-z][a-z0-9]{0,31}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a letter and then letters and digits, all lower case, 32 at most"
        )
    return text


def moment(text: str) -> int:
    """Unix time, from itself or from a date in UTC."""
    if text.isdecimal():
        return number(text)
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no date like 2026-01-31 or '2026-01-31 12:00:00'"
        ) from None
    return int((date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp())
