"""The command line. Each command's own imports wait until it is chosen: --help is quick."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from cuckoo_api import __version__
from cuckoo_api.cli.arguments import (
    add_check,
    add_client_arguments,
    add_completion_command,
    add_machines_command,
    add_plugin_command,
    add_task_commands,
    add_token_command,
    add_webserver_options,
    number,
)
from cuckoo_api.cli.networks import add_network_commands
from cuckoo_api.cli.operations import add_operations_commands
from cuckoo_api.cli.terminal import plain

EPILOG = """\
Without a command the server starts, as with 'api'.

A first analysis:
  cuckoo init                       make the working directory, ~/.cuckoo
  cuckoo guest build                build a small Linux guest and its snapshot
  cuckoo api                        start the server on 127.0.0.1:8090
  cuckoo submit --wait sample.sh    in another terminal
"""
SUBMIT_EPILOG = """\
examples:
  cuckoo submit sample.exe --platform windows --timeout 60
  cuckoo submit http://example.com/ --wait
  cuckoo submit a.sh b.sh --options arguments=-v,user=nobody
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="cuckoo",
        description="A malware sandbox server with Cuckoo Sandbox 2.0's REST API.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cuckoo-api-server {__version__}")
    parser.add_argument(
        "--cwd",
        metavar="DIR",
        help="the working directory (default: $CUCKOO_CWD, else ~/.cuckoo)",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    commands.add_parser(
        "init",
        help="make or complete the working directory",
        description="Write conf/, storage/ and a random API token; files that are there stay.",
    )

    api = commands.add_parser(
        "api",
        help="start the server",
        description="Serve the REST API and run analyses, until stopped by a signal.",
    )
    _add_api_arguments(api)
    api.add_argument(
        "--no-engine", action="store_true", help="serve the API alone; run no analyses"
    )
    api.add_argument(
        "--systemd",
        nargs="?",
        const="",
        metavar="DIR",
        help="print systemd's units for this installation, or write them below DIR, where / is "
        "where they belong; nothing is served",
    )
    add_webserver_options(api)
    engine = commands.add_parser(
        "engine",
        help="run analyses, beside an 'api --no-engine'",
        description="Run analyses until stopped by a signal. The API is another process's, on the "
        "same working directory: 'cuckoo api --no-engine'. The engine answers requests too, "
        "for its own figures and health.",
    )
    _add_api_arguments(engine, engine=True)

    submit = commands.add_parser(
        "submit",
        help="submit files or URLs to the running server",
        description="Submit files or URLs to the server that runs on this working directory.",
        epilog=SUBMIT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    submit.add_argument("targets", nargs="+", metavar="FILE|URL")
    for name, kind in (
        ("package", "how the guest runs it: elf, sh, python, url …"),
        ("timeout", "seconds that it runs"),
        ("priority", "1 to 3, higher goes first"),
        ("options", "key=value,key=value for the analyzer"),
        ("machine", "run on this machine, by name or label"),
        ("platform", "linux, windows …"),
        ("tags", "the machine must have all of these, comma-separated"),
        ("route", "where its packets go: drop, internet, a VPN's name …"),
        ("custom", "any text, kept with the task"),
        ("owner", "who asks"),
        ("clock", "the guest's time, month-day-year hour:minute:second"),
        ("callback", "an address that the server tells when the task has ended"),
    ):
        submit.add_argument(f"--{name}", help=kind)
    submit.add_argument(
        "--memory", action="store_true", help="dump the machine's memory at the end"
    )
    submit.add_argument(
        "--enforce-timeout", action="store_true", help="run the whole time, also when all is quiet"
    )
    submit.add_argument("--unique", action="store_true", help="refuse a file submitted before")
    submit.add_argument("--wait", action="store_true", help="follow the task and show its summary")
    add_client_arguments(submit)

    add_task_commands(commands)

    add_machines_command(commands)
    add_token_command(commands)

    guest = commands.add_parser("guest", help="build and prove the embedded Linux guest")
    guests = guest.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = guests.add_parser(
        "build",
        help="build the guest and take the machines' live snapshots",
        description="Build a small Linux guest from Debian packages (once; it is kept under "
        "guests/ in the working directory), configure machines for it in conf/qemu.conf where "
        "none is, boot each and take its live snapshot. The server must not be running.",
    )
    build.add_argument(
        "--machines", type=int, default=1, metavar="N", help="how many to configure (default: 1)"
    )
    build.add_argument("--force", action="store_true", help="take the snapshots anew")
    add_check(
        guests,
        "Prove each machine, as 'cuckoo machines check' does. The server must not be running.",
    )

    demo = commands.add_parser(
        "demo",
        help="everything at once: guest, server, one analysis, its summary",
        description="Make a working directory with a guest, start a server on a free port of "
        "this machine, run one sample through a real virtual machine, show what it did, stop.",
    )
    demo.add_argument("sample", nargs="?", help="the file to run (default: a harmless sample)")
    demo.add_argument("--timeout", type=int, default=30, help="seconds it may run (default: 30)")

    add_operations_commands(commands)
    add_network_commands(commands)
    add_plugin_command(commands)
    add_completion_command(commands)
    return parser


def _add_api_arguments(parser: argparse.ArgumentParser, *, engine: bool = False) -> None:
    default = "with -p; default: 127.0.0.1" if engine else "default: 127.0.0.1"
    parser.add_argument("-H", "--host", help=f"listen on this address ({default})")
    default = "with -H; default: any free one" if engine else "default: 8090; 0: any free one"
    parser.add_argument("-p", "--port", type=int, help=f"and this port ({default})")
    default = " (default: engine.sock in the working directory)" if engine else " instead"
    parser.add_argument("--socket", metavar="PATH", help=f"listen on a unix socket{default}")
    parser.add_argument(
        "--drain",
        type=number,
        default=0,
        metavar="SECONDS",
        help="at a stop let running analyses end, for so long at most (default: 0: they go back "
        "to the queue)",
    )
    parser.add_argument("--debug", action="store_true", help="more log; GET /exit stops the server")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code: 0, 1 for a failure, 2 for what must be mended first."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    arguments = parser.parse_args(words)
    if arguments.command is None:
        arguments = parser.parse_args([*words, "api"])
    from cuckoo_api.model.errors import ConfigError, CuckooError
    from cuckoo_api.settings import find_cwd

    cwd = find_cwd(arguments.cwd)
    try:
        return _dispatch(arguments, cwd)
    except ConfigError as exc:
        for fault in exc.faults:
            print(f"cuckoo: {plain(fault)}", file=sys.stderr)
        return 2
    except CuckooError as exc:
        lines = (plain(line) for line in str(exc).splitlines())
        print("cuckoo: " + "\n".join(lines), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _dispatch(arguments: argparse.Namespace, cwd: Path) -> int:
    if arguments.command in ("api", "engine"):
        return _api(arguments, cwd)
    if arguments.command == "rooter":
        from cuckoo_api.cli.rooter import rooter
        from cuckoo_api.server.logs import configure_logs

        configure_logs(debug=arguments.debug)
        return rooter(arguments, cwd)
    _quiet()
    match arguments.command:
        case "init":
            return _init(cwd)
        case "list" | "view" | "report" | "cancel" | "delete" | "reschedule" as command:
            from cuckoo_api.cli.tasks import COMMANDS

            return asyncio.run(COMMANDS[command](arguments, cwd))
        case "doctor":
            from cuckoo_api.cli.doctor import doctor

            return asyncio.run(doctor(arguments, cwd))
        case "reload":
            from cuckoo_api.cli.api import reload_server

            return reload_server(cwd)
        case "clean":
            from cuckoo_api.cli.clean import clean_up

            return asyncio.run(clean_up(arguments, cwd))
        case "backup" | "restore":
            from cuckoo_api.cli import backup

            act = backup.backup if arguments.command == "backup" else backup.bring_back
            return act(arguments, cwd)
        case "token":
            from cuckoo_api.cli.token import token

            return token(arguments, cwd)
        case "plugin":
            from cuckoo_api.cli.plugin import new

            return new(arguments)
        case "completion":
            from cuckoo_api.cli.completion import script

            print(script(build_parser(), arguments.shell))
            return 0
        case "submit":
            from cuckoo_api.cli.submit import submit

            return asyncio.run(submit(arguments, cwd))
        case "machines":
            from cuckoo_api.cli import machines

            actions = {"check": machines.check, "discover": machines.discover}
            return asyncio.run(actions.get(arguments.action, machines.show)(arguments, cwd))
        case "vpn":
            from cuckoo_api.cli import vpn

            return asyncio.run((vpn.check if arguments.action else vpn.show)(arguments, cwd))
        case "guest":
            from cuckoo_api.cli import guest, machines

            action = guest.build if arguments.action == "build" else machines.check
            return asyncio.run(action(arguments, cwd))
        case _:
            from cuckoo_api.cli.demo import demo

            return asyncio.run(demo(arguments, cwd if arguments.cwd else None))


def _quiet() -> None:
    """These commands tell what they do themselves: of the log only warnings are shown, on stderr.

    What they print may be read by a program.
    """
    import structlog

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def _init(cwd: Path) -> int:
    from cuckoo_api.fleet import load_plugins
    from cuckoo_api.settings import init_cwd

    written = init_cwd(cwd, list(load_plugins().values()))
    for path in written:
        print(f"wrote {path}")
    print(f"{cwd} is ready." if written else f"{cwd} was ready; nothing was changed.")
    return 0


def _api(arguments: argparse.Namespace, cwd: Path) -> int:
    if arguments.command == "api" and arguments.systemd is not None:
        from cuckoo_api.cli.api import show_units

        _quiet()
        return show_units(arguments, cwd)
    if arguments.command == "api" and (arguments.nginx or arguments.uwsgi):
        from cuckoo_api.cli.webservers import print_configuration

        _quiet()
        return print_configuration(arguments, cwd)
    from cuckoo_api.cli.api import run_server
    from cuckoo_api.server.logs import configure_logs

    configure_logs(debug=arguments.debug)
    return run_server(arguments, cwd)
