"""Access tokens: who may do what. They are kept in a TOML file, which holds no token, only hashes.

    [[tokens]]
    name = "prod-workers"                # what the journal and the log call it
    role = "write"                       # read, write or admin
    hash = "sha256:..."                  # of the token
    namespaces = ["prod"]                # write only: the namespaces of the owners it may change
    slugs = ["llama-*"]                  # write only: the slugs it may register; left out: all

A token is `mreg_` and 256 random bits. Whoever reads the file cannot make one from it; whoever
can write to the file has every right.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import tomllib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from registry.core.checks import NAME_PATTERN
from registry.core.text import shown
from registry.errors import Forbidden, Refused, SettingsError
from registry.server import token_file

TOKEN_PREFIX = "mreg_"
TOKEN_MAX_LENGTH = 256

_FIELDS = ("name", "role", "hash", "namespaces", "slugs")
_ENTRY = "[[tokens]]"
_is_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_is_namespace = re.compile(NAME_PATTERN).fullmatch
_is_pattern = re.compile(r"[a-z0-9_*?\[\]!-]{1,255}").fullmatch
_is_head = re.compile(r"\s*\[\[\s*tokens\s*\]\]").match
_is_hash = re.compile(r"sha256:[0-9a-f]{64}").fullmatch


class Role(StrEnum):
    """What a token may do. Each role includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        """Whether this role may do what the other may."""
        order = list(Role)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a caller may do. `name` is None where no tokens are asked for."""

    name: str | None
    role: Role
    namespaces: tuple[str, ...] = ()
    slugs: tuple[str, ...] = ()

    def check_namespace(self, namespace: str) -> None:
        """Raise Forbidden unless owners of this namespace may be changed."""
        if self.role is Role.ADMIN or namespace in self.namespaces:
            return
        raise Forbidden(
            f"The token {self.name} may not change owners in the namespace {shown(namespace)}; it "
            f"may in {', '.join(self.namespaces) or 'none'}. Use a token of that namespace, or ask "
            "for one."
        )

    def check_slugs(self, slugs: Iterable[str]) -> None:
        """Raise Forbidden unless every slug may be registered."""
        if self.role is Role.ADMIN or not self.slugs:
            return
        for slug in slugs:
            if not any(fnmatchcase(slug, pattern) for pattern in self.slugs):
                raise Forbidden(
                    f"The token {self.name} may not register the slug {shown(slug)}; it may "
                    f"register {', '.join(self.slugs)}. Use a token for that slug, or ask for one."
                )


EVERYTHING = Grant(None, Role.ADMIN)
"""What everybody may do where no tokens are asked for."""


@dataclass(frozen=True, slots=True)
class Token:
    """One entry of a token file."""

    grant: Grant
    digest: bytes


class Tokens:
    """The tokens of a file, for look-ups."""

    def __init__(self, tokens: Iterable[Token]) -> None:
        self._by_start: dict[bytes, list[Token]] = {}
        for token in tokens:
            self._by_start.setdefault(token.digest[:4], []).append(token)

    def find(self, presented: str) -> Grant | None:
        """What a presented token grants, or None: it is none of ours.

        The digest of what was presented is compared in constant time with those that begin alike.
        How long that takes says nothing about a token: nobody can choose the digest of a guess.
        """
        if len(presented) > TOKEN_MAX_LENGTH:
            return None
        digest = sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = None
        for token in self._by_start.get(digest[:4], ()):
            if hmac.compare_digest(token.digest, digest):
                found = token.grant
        return found


def load(path: Path) -> Tokens:
    """The tokens of a file. An empty file holds none, so that the last one can be revoked.

    Raises:
        SettingsError: it cannot be read, others may write to it, or it is not as it should be.
            The message names the file, the place and what is allowed.
    """
    text, mode = token_file.read(path)
    token_file.check_mode(path, mode)
    return Tokens(_parsed(path, text))


def grants(path: Path) -> list[Grant]:
    """What the tokens of a file grant, in its order.

    Raises:
        SettingsError: as `load`.
    """
    text, mode = token_file.read(path)
    token_file.check_mode(path, mode)
    return [token.grant for token in _parsed(path, text)]


def create(
    path: Path,
    role: Role,
    *,
    name: str | None = None,
    namespaces: Sequence[str] = (),
    slugs: Sequence[str] = (),
) -> tuple[Grant, str]:
    """Make a token and add its hash to a file, which is made if it is not there.

    The file holds the token when this returns, or is as it was before: it is replaced in one
    step, and two processes may do this at once.

    Returns:
        What the token grants, and the token. This is the only time that it can be seen.

    Raises:
        SettingsError: the grant makes no sense, or the file is not as it should be.
        OSError: the file cannot be written.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    digest = sha256(token.encode()).hexdigest()
    entry: dict[str, Any] = {
        "name": name or f"{role}-{secrets.token_hex(4)}",
        "role": role.value,
        "hash": f"sha256:{digest}",
    }
    entry |= {"namespaces": list(namespaces)} if namespaces else {}
    entry |= {"slugs": list(slugs)} if slugs else {}
    created = _entry("the new token", entry)
    path = Path(os.path.realpath(path))
    with token_file.locked(path.parent):
        before = ""
        if os.path.lexists(path):
            before, mode = token_file.read(path)
            token_file.check_mode(path, mode)
        _check_distinct(path, [*_parsed(path, before), created])
        token_file.replace(
            path, before + ("" if before[-1:] in ("", "\n") else "\n") + _written(entry)
        )
    return created.grant, token


def revoke(path: Path, name: str) -> Grant:
    """Take the entry of a token out of a file, in one step. The rest stays letter by letter.

    Returns:
        What the token granted.

    Raises:
        Refused: no token in the file has this name.
        SettingsError: the file is not as it should be, or the entry is written in another way than
            below a line [[tokens]] of its own.
        OSError: the file cannot be written.
    """
    path = Path(os.path.realpath(path))
    with token_file.locked(path.parent):
        text, mode = token_file.read(path)
        token_file.check_mode(path, mode)
        tokens = _parsed(path, text)
        number = next((n for n, each in enumerate(tokens) if each.grant.name == name), None)
        if number is None:
            raise Refused(
                f"No token in {path} has the name {shown(name)}. `metadata-registry token list` "
                "shows those that there are."
            )
        left = _without(text, number)
        if not _says(path, left, tokens[:number] + tokens[number + 1 :]):
            raise SettingsError(
                f"The token {name} in {path} does not stand below a line {_ENTRY} of its own. Take "
                "its entry out with an editor."
            )
        token_file.replace(path, left)
    return tokens[number].grant


def _without(text: str, number: int) -> str:
    """A file without one of its entries. Comments above entries stay."""
    lines = text.splitlines(keepends=True)
    heads = [place for place, line in enumerate(lines) if _is_head(line)]
    if number >= len(heads):
        return text
    end = heads[number + 1] if number + 1 < len(heads) else len(lines)
    while end > heads[number] + 1 and lines[end - 1].lstrip().startswith(("#", "\n", "\r")):
        end -= 1
    while end < len(lines) and not lines[end].strip():
        end += 1
    return "".join(lines[: heads[number]] + lines[end:])


def _says(path: Path, text: str, tokens: Sequence[Token]) -> bool:
    try:
        return _parsed(path, text) == list(tokens)
    except SettingsError:
        return False


def _written(entry: dict[str, Any]) -> str:
    """An entry as TOML. Its texts hold nothing that would have to be escaped."""
    lines = [_ENTRY]
    for field, value in entry.items():
        texts = ", ".join(f'"{each}"' for each in value)
        lines.append(f"{field} = [{texts}]" if isinstance(value, list) else f'{field} = "{value}"')
    return "\n".join(lines) + "\n\n"


# What is in it


def _parsed(path: Path, text: str) -> list[Token]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"The token file {path} is not TOML: {error}.") from error
    entries = document.pop("tokens", [])
    if document:
        raise SettingsError(
            f"The token file {path} has the unknown key {shown(next(iter(document)))}; it holds "
            f"{_ENTRY} and nothing else."
        )
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise SettingsError(f"tokens in {path} must be a list of tables, each below {_ENTRY}.")
    tokens = [
        _entry(f"token {number} in {path}", entry) for number, entry in enumerate(entries, start=1)
    ]
    _check_distinct(path, tokens)
    return tokens


def _entry(place: str, entry: dict[str, Any]) -> Token:
    """An entry, checked field by field. `place` begins the message about what is wrong."""
    for field in entry:
        if field not in _FIELDS:
            raise SettingsError(
                f"{place}: {shown(field)} is no field; there are {', '.join(_FIELDS)}."
            )
    name = _name(place, entry.get("name"))
    role = _role(place, entry.get("role"))
    digest = _digest(place, entry.get("hash"))
    namespaces = _texts(
        place, entry, "namespaces", _is_namespace, "of letters, digits, '.', '_' and '-'"
    )
    slugs = _texts(place, entry, "slugs", _is_pattern, "of a-z, 0-9, '_', '-' and the wildcards *?")
    if role is Role.WRITE and not namespaces:
        raise SettingsError(
            f"{place}: namespaces is missing; the role write needs one or more (--namespace)."
        )
    if role is not Role.WRITE and (namespaces or slugs):
        raise SettingsError(
            f"{place}: namespaces and slugs limit the role write only; the role {role} knows no "
            "such limits. Leave them out."
        )
    return Token(Grant(name, role, namespaces, slugs), digest)


def _role(place: str, value: object) -> Role:
    try:
        return Role(value)  # type: ignore[arg-type]
    except ValueError:
        raise SettingsError(
            f"{place}: role is {shown(value)}; it must be one of {', '.join(Role)}."
        ) from None


def _name(place: str, value: object) -> str:
    if not isinstance(value, str) or not _is_name(value):
        raise SettingsError(
            f"{place}: name is {shown(value)}; it must be 1 to 64 letters, digits, '.', '_' and "
            "'-'."
        )
    if value.startswith(TOKEN_PREFIX):
        raise SettingsError(f"{place}: name looks like a token; give it a name that is no secret.")
    return value


def _digest(place: str, value: object) -> bytes:
    if not isinstance(value, str) or not _is_hash(value):
        # What it is stays unsaid: it may be the token itself, put there by mistake.
        raise SettingsError(
            f"{place}: hash must be 'sha256:' and 64 lowercase hex digits; `token new` makes one."
        )
    return bytes.fromhex(value[len("sha256:") :])


def _texts(
    place: str, entry: dict[str, Any], field: str, allowed: Any, rule: str
) -> tuple[str, ...]:
    value = entry.get(field, [])
    if not isinstance(value, list) or not all(
        isinstance(each, str) and allowed(each) for each in value
    ):
        raise SettingsError(
            f"{place}: {field} is {shown(value)}; it must be a list of texts {rule}."
        )
    return tuple(value)


def _check_distinct(path: Path, tokens: Sequence[Token]) -> None:
    names = Counter(token.grant.name for token in tokens)
    digests = Counter(token.digest for token in tokens)
    for name, count in names.items():
        if count > 1:
            raise SettingsError(f"The token file {path} has the name {name} twice; rename one.")
    for digest, count in digests.items():
        if count > 1:
            raise SettingsError(
                f"The token file {path} has the hash sha256:{digest.hex()} twice; drop one."
            )
