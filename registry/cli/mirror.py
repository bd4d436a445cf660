"""`metadata-registry mirror`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from contextlib import closing
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from registry.cli.exit_codes import COULD_NOT_RUN, INTERRUPTED, REFUSED
from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token, Url
from registry.cli.output import print_json, print_note, warnings_shown
from registry.cli.tables import Column, print_table
from registry.cli.text import counted, shown_size
from registry.core import stopping
from registry.errors import SettingsError

if TYPE_CHECKING:
    from registry.mirror.loop import Mirror
    from registry.mirror.settings import MirrorSettings
    from registry.mirror.status import MirrorReport

STOP_MAX_S = 10.0
log = logging.getLogger("registry.mirror")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def mirror(
    discovery: Annotated[
        str,
        typer.Argument(
            metavar="DISCOVERY", help="Where the fleet publishes, like etcd://HOST:2379."
        ),
    ],
    url: Url = DEFAULT_URL,
    public_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="The registry as frontends reach it. Default: --url."),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            metavar="copy|rewrite|bridge",
            help="copy reads the store only; rewrite makes its cards name the registry; bridge "
            "does that in a second store.",
        ),
    ] = "copy",
    to: Annotated[
        str | None, typer.Option(metavar="DISCOVERY", help="With bridge: the second store.")
    ] = None,
    namespace: Annotated[
        list[str],
        typer.Option(
            metavar="NS", help="Only cards of this namespace; may be given several times."
        ),
    ] = [],  # noqa: B006 - typer copies it
    lease_ttl_s: Annotated[
        float, typer.Option(metavar="S", help="How long files stay when no mirror renews them.")
    ] = 3600.0,
    linger_s: Annotated[
        float, typer.Option(metavar="S", help="How long files stay when their card is gone.")
    ] = 60.0,
    local_root: Annotated[
        list[str],
        typer.Option(
            metavar="DIR",
            help="Cards may name files of this host below it; may be given several times.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Mirrors of one name take on what each other registered. Default: those of one "
            "store, and of one host where the store is of one host.",
        ),
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Do what is to be done now, and end.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, and change nothing.")
    ] = False,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where /metrics and /health are served.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="The port for it; 0: any.")] = 8091,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Keep in the registry what the model cards of an unchanged fleet name.

    Follows the cards of a discovery store, fetches each file once from the workers, verified, and
    registers it for the card's owner; renews the leases; unregisters when the card is gone. Stays
    until SIGTERM or Ctrl-C; what is registered stays then until its lease ends, or until a mirror
    of this store is started again. Several may run at once.
    """
    from registry.mirror.loop import Mirror
    from registry.mirror.settings import MirrorMode, MirrorSettings

    if mode not in list(MirrorMode):
        raise typer.BadParameter("--mode must be copy, rewrite or bridge.")
    if once and dry_run:
        raise typer.BadParameter("--once and --dry-run exclude each other: give one of them.")
    if once and mode == MirrorMode.BRIDGE:
        raise SettingsError(
            "What a bridge publishes lives as long as it runs: it cannot be done --once."
        )
    settings = MirrorSettings(
        *(discovery, url, public_url, MirrorMode(mode), to, tuple(namespace)),
        lease_ttl_s=lease_ttl_s,
        linger_s=linger_s,
        local_roots=tuple(local_root),
        name=name,
        token=token,
        ca_file=ca_file,
    )
    if not once and not dry_run:
        _show_log()
        _stay(settings, host, port, as_json)
        return
    with warnings_shown(as_json=as_json), closing(Mirror(settings)) as made:
        if dry_run:
            _print_plan(made, as_json)
        else:
            _print_report(made.run_once(print_note), as_json)


def _stay(settings: MirrorSettings, host: str, port: int, as_json: bool) -> None:
    from registry.mirror.loop import Mirror
    from registry.mirror.status_server import StatusServer

    ended = threading.Event()
    came = [0]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, stopping_at_once)
        came[0] = number
        stopping.end_in_time()
        ended.set()

    def stopping_at_once(number: int, frame: FrameType | None) -> NoReturn:
        os._exit(stopping.exit_code_of(number))

    made = Mirror(settings)
    server = StatusServer(host, port, made.report)
    for each in SIGNALS:
        signal.signal(each, stop)
    stopping.release(_bound())
    with made:
        if as_json:
            print_json({"status_url": server.url})
        else:
            print(f"mirroring; metrics at {server.url}/metrics, health at {server.url}/health")
        sys.stdout.flush()
        ended.wait()
        server.close()
    log.info("the mirror has ended; what is registered stays for its lease")
    if came[0] == signal.SIGINT:
        raise typer.Exit(INTERRUPTED)


def _bound() -> stopping.Bound:
    return stopping.Bound(
        STOP_MAX_S,
        COULD_NOT_RUN,
        f"did not end within {STOP_MAX_S:g} s and was broken off. What is registered stays until "
        "its lease ends, or until a mirror of this store is started again.",
        SIGNALS,
    )


def _show_log() -> None:
    from registry.core.logs import TextFormatter, handler_of

    handler = handler_of(sys.stderr)  # Nobody is to wait for a reader.
    handler.setFormatter(TextFormatter())
    log = logging.getLogger("registry")
    log.addHandler(handler)
    log.setLevel(logging.INFO)


def _print_plan(made: Mirror, as_json: bool) -> None:
    planned = made.preview()
    if as_json:
        rows = [
            {"step": step, "owner": str(owner), "detail": what} for step, owner, what in planned
        ]
        print_json({"steps": rows})
        return
    columns = [Column("STEP"), Column("OWNER"), Column("DETAIL", runs_on=True)]
    print_table(columns, [(step, str(owner), what) for step, owner, what in planned])
    print(f"\n{counted(len(planned), 'step')}; nothing was changed")


def _print_report(report: MirrorReport, as_json: bool) -> None:
    from registry.mirror.status_server import health_of

    counts = report.counts
    if as_json:
        print_json(health_of(report))
    else:
        fetched = f"{counted(report.fetched_files, 'file')} ({shown_size(report.fetched_bytes)})"
        print(
            f"{counted(counts.cards, 'card')}: {counts.mirrored} mirrored, {counts.left_alone} "
            f"left alone, {counts.failed} failed; {fetched} fetched"
        )
        if report.held_back:
            print(
                f"{counted(report.held_back, 'owner')} held back: so many cards are gone at once "
                "that the store may have been emptied"
            )
    if counts.failed or report.held_back:
        raise typer.Exit(REFUSED)
