"""The command line. Each group of commands is a module that is imported when it is used.

Exit codes: 0 fine, 1 findings or refused, 2 usage or could not run, 130 ended by SIGINT, 143 by
SIGTERM; `serve` and `attach --hold`, which end because they are told to, answer SIGTERM with 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, Any, NoReturn, cast

import typer
from typer.core import TyperCommand, TyperGroup

from registry import __version__
from registry.cli import examples, streams
from registry.cli.environment import check_open_files, use_utf8, warn_of_strangers
from registry.cli.exit_codes import COULD_NOT_RUN, INTERRUPTED, exit_code_of, report
from registry.cli.plain_values import read_plainly
from registry.cli.streams import OutputFailed, ReaderGone
from registry.errors import Refused, RegistryError, Usage

NAME = "metadata-registry"
HELP = frozenset({"--help", "-h"})

COMMANDS = {
    "serve": ("registry.cli.serve:serve", "Serve the registry over HTTP."),
    "demo": ("registry.cli.demo:demo", "Serve a small lively fleet, to look around in."),
    "db": ("registry.cli.db:app", "Look after the database: schema, backups."),
    "token": ("registry.cli.token:app", "Make access tokens, list them, take them back."),
    "doctor": ("registry.cli.doctor:doctor", "Look at all that is easily got wrong."),
    "config": ("registry.cli.config:app", "Show the settings and where they come from."),
    "attach": ("registry.cli.attach:attach", "Register a model directory's metadata files."),
    "detach": ("registry.cli.attach:detach", "Release all that an owner holds."),
    "rm": ("registry.cli.remove:rm", "Drop a model's files, whoever holds them."),
    "renew": ("registry.cli.lease:renew", "Renew an owner's lease."),
    "drain": ("registry.cli.lease:drain", "Announce that an owner is going to detach."),
    "fetch": ("registry.cli.fetch:fetch", "Download a model's files, verified."),
    "ls": ("registry.cli.inspect:ls", "List the registered files."),
    "owners": ("registry.cli.inspect:owners", "List the owners, or show what one holds."),
    "models": ("registry.cli.inspect:models", "List the models, and whether they can be served."),
    "events": ("registry.cli.events:events", "Show what happened, and go on with --follow."),
    "sql": ("registry.cli.sql:sql", "Ask the database one question in SQL."),
    "audit": ("registry.cli.audit:audit", "Report leaks and faults of a database."),
    "sweep": ("registry.cli.sweep:sweep", "End lapsed owners now."),
    "verify": ("registry.cli.audit:verify", "Check a database, its content and its journal."),
    "mirror": ("registry.cli.mirror:mirror", "Hold the files of a fleet that is not changed."),
    "explain": ("registry.cli.inspect:explain", "Show why a file is served, and whose bytes."),
    "health": ("registry.cli.health:health", "Ask a service whether it can do its work."),
}
"""Every command: where it is (a function, or a Typer app with commands of its own), and its line
in the help of the program."""


class LazyCommand(TyperCommand):
    """A command known by its name and help line; its module is imported when it is called."""

    def __init__(self, name: str, home: str, help_line: str) -> None:
        super().__init__(name, help=help_line)
        self._home = home

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        context = _loaded(self._home).make_context(info_name, args, parent, **extra)
        if info_name != "serve" and not HELP & set(args):  # The service has a log for that.
            warn_of_strangers(known_too=info_name == "config")
        return context


def _is_here(home: str) -> bool:
    """Whether a command is installed: metadata-registry-client has those alone that use a
    service."""
    return find_spec(home.partition(":")[0]) is not None


def _loaded(home: str) -> Any:
    module, name = home.split(":")
    if not _is_here(home):
        raise Usage(
            "This command is not in metadata-registry-client, which is installed here. Install the "
            "whole in its place: pip uninstall metadata-registry-client, then pip install "
            "metadata-registry."
        )
    found: typer.Typer | Callable[..., object] = getattr(import_module(module), name)
    if isinstance(found, typer.Typer):
        app = found
    else:
        app = typer.Typer(add_completion=False)
        app.command()(found)
    # Rich would cut long flags short to fit them into its boxes.
    app.rich_markup_mode = None
    command = read_plainly(typer.main.get_command(app))
    _give_examples(command, next(each for each, (at, _) in COMMANDS.items() if at == home))
    return command


def _give_examples(command: Any, name: str) -> None:
    command.epilog = examples.shown(name)
    for each, inner in getattr(command, "commands", {}).items():
        _give_examples(inner, f"{name} {each}")


def program() -> TyperGroup:
    """The command with all its subcommands."""
    app = typer.Typer(
        name=NAME,
        no_args_is_help=True,
        rich_markup_mode=None,
        context_settings={"help_option_names": sorted(HELP)},
    )
    app.callback()(_program)
    group = cast(TyperGroup, read_plainly(typer.main.get_command(app)))
    group.epilog = examples.shown("", lambda line: _is_here(COMMANDS[line.split()[0]][0]))
    is_whole = _is_here(COMMANDS["serve"][0])
    for name, (home, help_line) in COMMANDS.items():
        command = LazyCommand(name, home, help_line)
        command.hidden = not (is_whole or _is_here(home))
        group.add_command(command)
    return group


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"{NAME} {__version__}")
        raise typer.Exit


def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """A durable registry of the metadata files that LLM serving workers share."""


def main() -> NoReturn:
    """Run the command of this process's arguments and exit."""
    use_utf8()
    streams.secure()
    sys.exit(_run())


def _run() -> int:
    try:
        try:
            check_open_files()
            return _run_command()
        finally:
            sys.stdout.flush()
    except ReaderGone:
        streams.drop_output()
        return 1
    except OutputFailed as error:
        streams.drop_output()
        report(error)
        return COULD_NOT_RUN
    except KeyboardInterrupt:
        return INTERRUPTED
    except (RegistryError, OSError, UnicodeEncodeError, MemoryError) as error:
        report(error)
        return exit_code_of(error)


def _run_command() -> int:
    """Run the command; its exit code where it ended early."""
    try:
        code = program().main(prog_name=NAME, standalone_mode=False)
    except typer.TyperException as error:
        return _report_usage(error)
    except typer.Abort:
        raise Refused("It was not confirmed; nothing was changed.") from None
    return code if isinstance(code, int) else 0


def _report_usage(error: typer.TyperException) -> int:
    text = error.format_message()
    if text.startswith("Usage: "):  # A group of commands was called without one: its help.
        print(text, file=sys.stderr)
    else:
        context = getattr(error, "ctx", None)
        path = NAME if context is None else context.command_path
        lines = " ".join(text.split())
        lines = lines.replace("Value error, ", "")
        end = "" if lines.endswith("?") else "."
        report(Usage(f"{lines.rstrip('.')}{end} See `{path} --help`."))
    return COULD_NOT_RUN
