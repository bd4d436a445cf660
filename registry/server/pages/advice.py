"""What each class of findings is, and what to do about it, as docs/audit.md says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Advice(NamedTuple):
    """What a class of findings is, and what to do. Between backquotes is what is typed."""

    what: str
    do: str


ADVICE: Mapping[str, Advice] = {
    "orphan_entry": Advice(
        "an entry that nobody holds",
        "`metadata-registry rm SLUG/SUFFIX`",
    ),
    "ref_of_ended_owner": Advice(
        "an owner that has ended and still holds something",
        "`metadata-registry detach OWNER`",
    ),
    "dangling_ref": Advice(
        "an owner ref whose owner or entry is not there",
        "restore a backup: `metadata-registry db restore FILE`",
    ),
    "lapsed_lease": Advice(
        "an active owner whose lease lapsed longer ago than the grace, and that holds something",
        "`metadata-registry sweep`; if that says that it waits, see why",
    ),
    "superseded_incarnation": Advice(
        "an active owner, while a newer instance of the same worker has registered since",
        "`metadata-registry detach OWNER` for the older",
    ),
    "stuck_drain": Advice(
        "draining past its deadline",
        "see that discovery does not list it, then `metadata-registry detach OWNER`",
    ),
    "orphan_blob": Advice(
        "content that nobody registered within the upload grace",
        "`metadata-registry sweep`",
    ),
    "immortal_owner": Advice(
        "holds something and has no lease",
        "nothing, if you meant it",
    ),
    "ghost_owner": Advice(
        "active for an hour and holds nothing",
        "nothing: it ends with its lease",
    ),
    "unserveable_entry": Advice(
        "no holder has the right bytes: the model cannot be served",
        "put the registered bytes back at the path of one holder (the file's page has path and "
        "checksum): the next look finds them, and the file is served again. Where the new bytes "
        "are the right ones: `metadata-registry rm SLUG/SUFFIX`, then have its workers register "
        "again",
    ),
    "drifted_ref": Advice(
        "a file in place has other bytes than were registered",
        "put the registered bytes back at its path (the file's page has the checksum), which mends "
        "every holder of that path at the next look. Where the new bytes are the right ones: have "
        "its owner register again, after `metadata-registry rm SLUG/SUFFIX` if others hold the "
        "file too",
    ),
    "missing_file": Advice(
        "a file in place is gone or cannot be read",
        "put it back at its path, or `metadata-registry detach OWNER`",
    ),
    "root_missing": Advice(
        "a file in place below an artifact root that the service does not have, or that "
        "is not there, any more",
        "start the service with that root, mount it, or `metadata-registry detach OWNER`",
    ),
    "missing_blob": Advice(
        "a copied ref whose content is not there",
        "upload it again, or restore a backup: `metadata-registry db restore FILE`",
    ),
    "path_outside_roots": Advice(
        "a file in place below none of the roots given (`--check-files`)",
        "start the service with that root, or `metadata-registry detach OWNER`",
    ),
    "unverified_ref": Advice(
        "a file in place that was not hashed for longer than the scrub period",
        "see that a service runs and sweeps",
    ),
    "journal_says_gone": Advice(
        "an owner ref whose event is missing, or is not its registration",
        "restore a backup: `metadata-registry db restore FILE`",
    ),
    "journal_says_held": Advice(
        "the journal has a registration and no release, and there is no such ref (`verify`)",
        "restore a backup: `metadata-registry db restore FILE`",
    ),
    "unresolved_conflict": Advice(
        "a registration was refused within the last hour, and that owner has neither "
        "succeeded nor left since",
        "compare what the refused owner offers with what is registered. Right is what is "
        "registered: give that worker the same files, or `metadata-registry detach "
        "OWNER`. Right is what it offers: `metadata-registry rm SLUG/SUFFIX`, then have "
        "all workers of the model register the new files. Both are: let it register "
        "beside the others, with `--on-conflict revision`",
    ),
    "advertised_not_served": Advice(
        "a card names a file here that a frontend does not get: nobody holds it, or "
        "nobody of that endpoint, it is held with another checksum, or no holder has its "
        "bytes (`--discovery`)",
        "register it again, or withdraw the card",
    ),
    "served_not_advertised": Advice(
        "an active owner that holds files and has no live card (`--discovery`)",
        "nothing before its lease and the grace are over; then `metadata-registry detach "
        "OWNER`, if nobody needs it",
    ),
    "not_adopted": Advice(
        "a card that names others, and whose owner holds nothing here (`--discovery`)",
        "mirror it",
    ),
    "incompatible_cards": Advice(
        "cards of one model at one endpoint that differ in files or `source_path`, so "
        "that frontends reject all but the first kind (`--discovery`)",
        "have all workers serve the same files, or give each kind a namespace",
    ),
    "integrity": Advice(
        "SQLite's check, a foreign key, or the checksum of a copy fails (`verify`)",
        "restore a backup: `metadata-registry db restore FILE`",
    ),
}

SEVERITIES: Mapping[str, str] = {
    "note": "worth knowing; a healthy registry may have some",
    "leak": "held, and not needed",
    "fault": "somebody is not served as they should be",
    "outage": "models are advertised that cannot be served",
    "corruption": "rows contradict each other: somebody wrote past the registry, or the disk lied",
}
"""How bad a finding is, from the least to the worst."""
