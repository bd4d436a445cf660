"""`metadata-registry attach` and `detach`."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from registry.cli.options import DEFAULT_URL, AsJson, CaFile, Token, Url
from registry.cli.output import ProgressBar, print_json, warnings_shown
from registry.cli.tables import Column, print_table
from registry.cli.text import counted, shown_size
from registry.core.checks import parse_instance_id
from registry.core.model_revisions import OnConflict
from registry.core.records import Owner, Receipt
from registry.core.slugs import slugify
from registry.wire.paths import metadata_path
from registry.wire.requests import LEASE_DEFAULT_S, OwnerIdentity
from registry.wire.responses import ReceiptResponse, RegisteredResponse

if TYPE_CHECKING:
    from registry.client.attach import Attached
    from registry.client.client import RegistryClient
    from registry.client.lease_terms import LeaseTerms
    from registry.discovery.cards import Card

HOLD_TIMEOUT_S = 10.0
"""How long the registry may be silent: the end of --hold must not take long."""


def attach(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="The model's directory.")],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="The model's name, like Org/Model; makes the slug.")
    ],
    endpoint: Annotated[
        str, typer.Option(metavar="NS/COMP/EP", help="Namespace, component and endpoint.")
    ],
    instance_id: Annotated[
        str | None,
        typer.Option(metavar="N", help="The instance, 0 to 2^64-1. Default: a random number."),
    ] = None,
    lora: Annotated[
        str | None, typer.Option(metavar="NAME", help="Attach as this LoRA; makes the suffix.")
    ] = None,
    exclude: Annotated[
        list[str],
        typer.Option(
            metavar="PATTERN",
            help="Leave out files of such names, like '*.distcp'; may be given several times.",
        ),
    ] = [],  # noqa: B006 - typer copies it
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Serve the files where they are; copy nothing.")
    ] = False,
    worker_name: Annotated[
        str | None, typer.Option(metavar="W", help="A name that outlives restarts of the worker.")
    ] = None,
    on_conflict: Annotated[
        OnConflict,
        typer.Option(
            help="When others hold files of it with other content: register it beside theirs?"
        ),
    ] = OnConflict.REFUSE,
    hold: Annotated[
        bool,
        typer.Option(
            "--hold", help="Stay: renew a lease until SIGTERM or Ctrl-C comes, then detach."
        ),
    ] = False,
    lease_ttl_s: Annotated[
        float, typer.Option(metavar="S", help="With --hold: the lease, 1 s to 7 days.")
    ] = LEASE_DEFAULT_S,
    discovery: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --hold: publish a model card there, like file:/DIRECTORY or etcd://HOST:2379.",
        ),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="With --discovery: also publish that requests are taken here.",
        ),
    ] = None,
    public_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="With --discovery: the registry as frontends reach it. Default: --url.",
        ),
    ] = None,
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Register a model directory's metadata files, print their URLs and who owns them.

    Taken are the files that a frontend needs to prepare requests: config, tokenizer, chat
    template and the like. Weights, README, licence, images, dotfiles and subdirectories stay out,
    and with a warning what cannot be read or is too large for the service. A broken file that a
    model cannot be without, like tokenizer.json, is an error.
    The files stay registered until the owner is detached. With --hold the command stays and does
    that at its end; if it is killed, the registry does it when the lease and its grace are over.
    """
    if not hold and (discovery is not None or lease_ttl_s != LEASE_DEFAULT_S):
        raise typer.BadParameter("--lease-ttl-s and --discovery need --hold.")
    if discovery is None and (address is not None or public_url is not None):
        raise typer.BadParameter("--address and --public-url need --discovery.")
    owner = _owner(endpoint, instance_id, lora)
    slug = slugify(name)
    from registry.client.client import RegistryClient
    from registry.client.lease_terms import LeaseTerms

    if hold:
        from registry.cli.hold import hold as hold_model
        from registry.client.worker import Worker
        from registry.discovery.cards import LoraInfo

        base = Owner(owner.namespace, owner.component, owner.endpoint, owner.instance_id)
        hold_model(
            lambda on_problem: Worker(
                url,
                base,
                discovery=discovery,
                lease_ttl_s=lease_ttl_s,
                worker_name=worker_name,
                on_conflict=on_conflict,
                address=address,
                public_url=public_url,
                token=token,
                ca_file=ca_file,
                timeout_s=HOLD_TIMEOUT_S,
                on_problem=on_problem,
            ),
            lambda worker, progress: worker.attach(
                model_dir,
                name=name,
                lora=None if lora is None else LoraInfo(lora),
                in_place=in_place,
                exclude=exclude,
                on_progress=progress,
            ),
            lambda card: _print_held(owner, card, as_json),
        )
        return
    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        lease = LeaseTerms(None, worker_name, on_conflict)
        with warnings_shown(as_json=as_json):
            attached = _attach(client, owner, slug, model_dir, in_place, exclude, lease)
    if as_json:
        print_json(RegisteredResponse.of(attached.registered))
    else:
        _print_attached(client.url, attached, in_place)


def detach(
    owner: Annotated[
        str,
        typer.Argument(metavar="OWNER", help="namespace/component/endpoint/instance/suffix"),
    ],
    url: Url = DEFAULT_URL,
    token: Token = None,
    ca_file: CaFile = None,
    as_json: AsJson = False,
) -> None:
    """Release all that an owner holds, print what was removed and what others keep.

    An owner that is unknown or detached already releases nothing, and that is fine.
    """
    identity = Owner.parse(owner)
    from registry.client.client import RegistryClient

    with RegistryClient(url, token=token, ca_file=ca_file) as client:
        receipt = client.unregister_for_owner(identity)
    if as_json:
        print_json(ReceiptResponse.of(receipt))
    else:
        _print_receipt(receipt)


def _attach(
    client: RegistryClient,
    owner: Owner,
    slug: str,
    model_dir: Path,
    in_place: bool,
    exclude: Sequence[str],
    lease: LeaseTerms,
) -> Attached:
    from registry.client.attach import attach as attach_directory

    with ProgressBar() as progress:
        return attach_directory(
            client,
            owner,
            slug,
            model_dir,
            in_place=in_place,
            exclude=exclude,
            worker_name=lease.worker_name,
            on_conflict=lease.on_conflict,
            on_progress=progress,
        )


def _owner(endpoint: str, instance_id: str | None, lora: str | None) -> Owner:
    from registry.client.protocol import Endpoint

    number = secrets.randbits(64) if instance_id is None else parse_instance_id(instance_id)
    return Endpoint.parse(endpoint).owner(number, None if lora is None else slugify(lora))


def _print_attached(url: str, attached: Attached, in_place: bool) -> None:
    artifacts = attached.registered.artifacts
    print_table(
        [Column("OUTCOME"), Column("SIZE", right=True), Column("URL", runs_on=True)],
        [
            (each.outcome, shown_size(each.size), url + metadata_path(each.key))
            for each in artifacts
        ],
    )
    total = shown_size(sum(each.size for each in artifacts))
    how = "in place" if in_place else f"uploaded {len(attached.uploaded)}"
    print(f"\n{counted(len(artifacts), 'file')}, {total}; {how}")
    print(f"owner {attached.registered.owner}")


def _print_held(owner: Owner, card: Card, as_json: bool) -> None:
    if as_json:
        print_json({"owner": OwnerIdentity.of(owner), "card": dict(card.content)})
    else:
        columns = [Column("SIZE", right=True), Column("URL", runs_on=True)]
        print_table(columns, [(shown_size(file.size), file.url) for file in card.files])
        total = shown_size(sum(file.size for file in card.files))
        print(f"\n{counted(len(card.files), 'file')}, {total}; held until Ctrl-C or SIGTERM")
        print(f"owner {owner}")
    sys.stdout.flush()


def _print_receipt(receipt: Receipt) -> None:
    rows = [("removed", str(key), "0") for key in receipt.removed]
    rows += [("kept", str(kept.key), str(kept.holders)) for kept in receipt.kept]
    if rows:
        print_table([Column("OUTCOME"), Column("KEY"), Column("HOLDERS LEFT", True)], rows)
        print()
    print(f"released {receipt.released}: removed {len(receipt.removed)}, kept {len(receipt.kept)}")
