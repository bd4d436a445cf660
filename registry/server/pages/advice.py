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
        "`DELETE /v1/artifacts/{slug}/{suffix}`",
    ),
    "ref_of_ended_owner": Advice(
        "an owner that has ended and still holds something",
        "`detach` it",
    ),
    "dangling_ref": Advice(
        "an owner ref whose owner or entry is not there",
        "restore a backup",
    ),
    "lapsed_lease": Advice(
        "an active owner whose lease lapsed longer ago than the grace, and that holds something",
        "`sweep`; if that says that it waits, see why",
    ),
    "superseded_incarnation": Advice(
        "an active owner, while a newer instance of the same worker has registered since",
        "`detach` the older",
    ),
    "stuck_drain": Advice(
        "draining past its deadline",
        "see that discovery does not list it, then `detach` it",
    ),
    "orphan_blob": Advice(
        "content that nobody registered within the upload grace",
        "`sweep`",
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
        "no holder has the right bytes",
        "put the file back, or register again",
    ),
    "drifted_ref": Advice(
        "a file in place has other bytes than were registered",
        "its owner is to register again",
    ),
    "missing_file": Advice(
        "a file in place is gone or cannot be read",
        "put it back, or detach its owner",
    ),
    "root_missing": Advice(
        "a file in place below an artifact root that the service does not have, or that is "
        "not there, any more",
        "start it with that root, mount it, or detach its owner",
    ),
    "missing_blob": Advice(
        "a copied ref whose content is not there",
        "upload it again, or restore a backup",
    ),
    "path_outside_roots": Advice(
        "a file in place below none of the roots given (`--check-files`)",
        "add the root, or detach its owner",
    ),
    "unverified_ref": Advice(
        "a file in place that was not hashed for longer than the scrub period",
        "see that a service runs and sweeps",
    ),
    "journal_says_gone": Advice(
        "an owner ref whose event is missing, or is not its registration",
        "restore a backup",
    ),
    "journal_says_held": Advice(
        "the journal has a registration and no release, and there is no such ref (`verify`)",
        "restore a backup",
    ),
    "unresolved_conflict": Advice(
        "a registration was refused within the last hour, and that owner has neither "
        "succeeded nor left since",
        "decide which bytes are right",
    ),
    "advertised_not_served": Advice(
        "a card names a file here that a frontend does not get: nobody holds it, or nobody "
        "of that endpoint, it is held with another checksum, or no holder has its bytes "
        "(`--discovery`)",
        "register it again, or withdraw the card",
    ),
    "served_not_advertised": Advice(
        "an active owner that holds files and has no live card (`--discovery`)",
        "nothing before its lease and the grace are over; then `detach` it, if nobody needs it",
    ),
    "not_adopted": Advice(
        "a card that names others, and whose owner holds nothing here (`--discovery`)",
        "mirror it",
    ),
    "incompatible_cards": Advice(
        "cards of one model at one endpoint that differ in files or `source_path`, so that "
        "frontends reject all but the first kind (`--discovery`)",
        "have all workers serve the same files, or give each kind a namespace",
    ),
    "integrity": Advice(
        "SQLite's check, a foreign key, or the checksum of a copy fails (`verify`)",
        "restore a backup",
    ),
}
