"""`metadata-registry audit` and `verify`: what is wrong with a registry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from registry.cli.audit_discovery import ComparisonOptions, compare_twice
from registry.cli.db import DEFAULT_URL, DatabaseUrl
from registry.cli.options import AsJson, CaFile, ServiceUrl, Token, Wide
from registry.cli.output import warnings_shown
from registry.cli.reports import print_report
from registry.cli.subjects import asked, opened
from registry.errors import Usage
from registry.wire.reports import AuditResponse, DiscoveryComparisonResponse

if TYPE_CHECKING:
    from registry.client.client import RegistryClient

OF_A_DATABASE = ("check_files", "artifact_root", "discovery", "namespace", "public_url")
"""Parameters that say what is looked at from here."""


def audit(
    context: typer.Context,
    classes: Annotated[
        list[str] | None, typer.Option("--class", metavar="NAME", help="Only this class; repeat.")
    ] = None,
    check_files: Annotated[
        bool,
        typer.Option("--check-files", help="Look at every file that is held in place as well."),
    ] = False,
    artifact_root: Annotated[
        list[str] | None,  # A Path would be looked at, and may hang.
        typer.Option(
            "--artifact-root",
            metavar="DIR",
            help="With --check-files: report paths that are below none of these; repeat.",
        ),
    ] = None,
    discovery: Annotated[
        str | None,
        typer.Option("--discovery", metavar="URL", help="Compare with this discovery store."),
    ] = None,
    namespace: Annotated[
        list[str] | None,
        typer.Option("--namespace", metavar="NS", help="With --discovery: only this one; repeat."),
    ] = None,
    public_url: Annotated[
        list[str] | None,
        typer.Option(
            "--public-url",
            metavar="URL",
            help="With --discovery: the registry as cards name it; repeat.",
        ),
    ] = None,
    compared: Annotated[
        bool,
        typer.Option(
            "--compared", help="With --url: also what the service itself found in discovery."
        ),
    ] = False,
    wide: Wide = False,
    url: ServiceUrl = None,
    token: Token = None,
    ca_file: CaFile = None,
    database_url: DatabaseUrl = DEFAULT_URL,
    as_json: AsJson = False,
) -> None:
    """Report leaks and faults. Exit 1 if any is above a note. Changes nothing.

    With --discovery, what does not fit is looked at again after the time that discovery keeps the
    dead, as workers come and go.
    """
    if url is not None:
        with asked(context, url, token, ca_file, *OF_A_DATABASE) as client:
            print_report(_of_service(client, classes or [], compared), as_json, wide=wide)
        return
    if compared:
        raise Usage(
            "--compared asks a service what it found in discovery: say --url as well. Here, "
            "--discovery URL compares."
        )
    from registry.config import Settings
    from registry.content.file_audit import check_files as look_at_files
    from registry.content.places import bounded_root, patience_for_files
    from registry.content.roots import ArtifactRoots
    from registry.errors import Busy
    from registry.store.reads import audit as audits

    wanted = audits.check_classes(classes or [])
    options = ComparisonOptions.of(discovery, namespace or (), public_url or (), wanted)
    unchecked: Busy | None = None
    with opened(database_url) as database:
        with warnings_shown(as_json=as_json):
            comparison = None if options is None else compare_twice(database, options)
        with database.read() as conn:
            found, summary = audits.find_leaks(conn, wanted), audits.summarize(conn)
        if check_files:
            limit_s = Settings().file_timeout_s
            named = artifact_root or _artifact_roots_of(os.environ)
            roots = ArtifactRoots(named, bounded_root(limit_s)) if named else None
            patience = patience_for_files(limit_s)
            known = {(each.kind, each.owner, each.entry) for each in found}
            try:
                for each in look_at_files(database, roots, patience.run, patience.follow):
                    is_known = (each.kind, each.owner, each.entry) in known
                    if (not wanted or each.kind in wanted) and not is_known:
                        found.append(each)
            except Busy as error:
                unchecked = error
    report = audits.report_of(found, summary)
    answer = AuditResponse.of(report)
    if comparison is not None:
        looked_at = DiscoveryComparisonResponse.of(comparison, comparison.looked_at)
        answer = AuditResponse.of(audits.joined(report, comparison.audit), looked_at)
    try:
        print_report(answer, as_json, wide=wide)
    finally:
        if unchecked is not None:
            raise unchecked


def _of_service(client: RegistryClient, classes: list[str], compared: bool) -> AuditResponse:
    """What a service finds, of some classes or of all."""
    if not classes:
        return client.audit(discovery=compared)
    reports = [client.audit(each, discovery=compared) for each in dict.fromkeys(classes)]
    findings = [finding for report in reports for finding in report.findings]
    findings.sort(key=lambda finding: -finding.severity.rank)
    discovery = [each.discovery for each in reports if each.discovery is not msgspec.UNSET]
    return AuditResponse(
        findings[0].severity if findings else None,
        {kind: count for report in reports for kind, count in report.counts.items()},
        findings,
        reports[0].summary,
        discovery[0] if discovery else msgspec.UNSET,
    )


def _artifact_roots_of(environ: Mapping[str, str]) -> list[str]:
    return [root for root in environ.get("REGISTRY_ARTIFACT_ROOTS", "").split(os.pathsep) if root]


def verify(database_url: DatabaseUrl = DEFAULT_URL, as_json: AsJson = False) -> None:
    """Check the database file, every copied content and the journal. Exit 1 if anything is wrong.

    Reads the whole database; may run beside a service.
    """
    from registry.store.reads import audit as audits
    from registry.store.reads.verify import verify as verify_database

    with opened(database_url) as database:
        report = audits.report_of(verify_database(database), None)
    print_report(AuditResponse.of(report), as_json)
