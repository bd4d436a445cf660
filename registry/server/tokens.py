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

import fcntl
import hmac
import os
import re
import secrets
import stat
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import Any

from registry.core.checks import NAME_PATTERN
from registry.core.settings_files import read_toml_text
from registry.core.text import shown
from registry.errors import Forbidden, SettingsError

TOKEN_PREFIX = "mreg_"
TOKEN_MAX_LENGTH = 256
FILE_MODE = 0o600

_FIELDS = ("name", "role", "hash", "namespaces", "slugs")
_ENTRY = "[[tokens]]"
_is_name = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch
_is_namespace = re.compile(NAME_PATTERN).fullmatch
_is_pattern = re.compile(r"[a-z0-9_*?\[\]!-]{1,255}").fullmatch
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
    text, mode = _read(path)
    _check_mode(path, mode)
    return Tokens(_parsed(path, text))


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
    with _locked(path.parent):
        before = ""
        if os.path.lexists(path):
            before, mode = _read(path)
            _check_mode(path, mode)
        _check_distinct(path, [*_parsed(path, before), created])
        _replace(path, before + ("" if before[-1:] in ("", "\n") else "\n") + _written(entry))
    return created.grant, token


def _written(entry: dict[str, Any]) -> str:
    """An entry as TOML. Its texts hold nothing that would have to be escaped."""
    lines = [_ENTRY]
    for field, value in entry.items():
        texts = ", ".join(f'"{each}"' for each in value)
        lines.append(f"{field} = [{texts}]" if isinstance(value, list) else f'{field} = "{value}"')
    return "\n".join(lines) + "\n\n"


# The file


def _read(path: Path) -> tuple[str, int]:
    """The text of the file and its mode."""
    hint = f"Make one with `metadata-registry token new --role admin --token-file {path}`."
    text, status = read_toml_text(path, "token file", hint=hint)
    return text, status.st_mode


def _check_mode(path: Path, mode: int) -> None:
    """A group may read the file, as it must where it is mounted for a service's user."""
    if mode & (stat.S_IWGRP | stat.S_IRWXO):
        raise SettingsError(
            f"The token file {path} has the mode {stat.S_IMODE(mode):04o}; it must be 0600, or "
            f"0640 if its group has to read it. Do: chmod 600 {path}"
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One at a time may replace files in the directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Replace the file in one step. Its mode, owner and group stay."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                status = path.stat()
                if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, status.st_uid, status.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise


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
