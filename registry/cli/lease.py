"""`metadata-registry renew` and `drain`: an owner's time, for workers that are scripts."""

from __future__ import annotations

from typing import Annotated

import typer

from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token, Url
from registry.cli.output import print_json
from registry.cli.tables import print_facts
from registry.core.records import Owner
from registry.core.times import format_time
from registry.wire.requests import DRAIN_DEFAULT_S
from registry.wire.responses import DrainedResponse, RenewedResponse

OwnerName = Annotated[
    str,
    typer.Argument(metavar="OWNER", help="namespace/component/endpoint/instance/suffix"),
]


def renew(
    owner: OwnerName,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Renew an owner's lease, print when it ends now.

    Exit 1 if the owner was ended or never registered: then register it again, unless a newer
    instance has taken its place.
    """
    identity = Owner.parse(owner)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        renewed = client.renew(identity)
    if as_json:
        print_json(RenewedResponse.of(renewed))
        return
    lease = renewed.lease
    print_facts(
        [
            ("owner", str(renewed.owner)),
            ("lease ends", format_time(lease.expires_at) if lease else "never: it has none"),
            ("files", str(renewed.refs)),
            *([("not serveable", str(renewed.unserveable))] if renewed.unserveable else []),
        ]
    )


def drain(
    owner: OwnerName,
    deadline_s: Annotated[
        float,
        typer.Option("--deadline-s", metavar="N", help="How long the detach may take."),
    ] = DRAIN_DEFAULT_S,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Announce that an owner is going to detach, print until when it may.

    It is served until it is detached, by itself or by the service at the deadline. Registering it
    again cancels the announcement. Exit 1 if the owner was ended or never registered.
    """
    identity = Owner.parse(owner)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        drained = client.drain(identity, deadline_s=deadline_s)
    if as_json:
        print_json(DrainedResponse.of(drained))
        return
    until = format_time(drained.deadline_at)
    print_facts([("owner", str(drained.owner)), ("drained until", until)])
