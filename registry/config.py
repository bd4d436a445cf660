"""The settings of the service: what there is, what is allowed, and where each value comes from.

A value given as a flag wins over the environment (`REGISTRY_*`), that over the TOML file, that
over the default. Settings are read once, at the edge, and passed on as one frozen record.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from registry.core.environment import PREFIX, is_service_link, is_slip
from registry.core.policy import DEFAULTS
from registry.core.setting_rules import (
    Rule,
    Setting,
    ValueKind,
    number_setting,
    ruled_setting,
    switch_setting,
    text_setting,
    whole_setting,
)
from registry.core.settings_files import read_toml_text
from registry.core.text import shown
from registry.core.times import seconds_of
from registry.errors import SettingsError

OTHER_VARIABLES = frozenset(
    {"REGISTRY_CA_FILE", "REGISTRY_CONFIG", "REGISTRY_TOKEN", "REGISTRY_URL"}
)
"""Variables with our prefix that are no settings: the commands read them as flags."""
_KIB, _MIB, _GIB, _TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_HOUR_S, _DAY_S = 3600, 86_400
_H, _D = 3_600_000, 86_400_000
"""Milliseconds, in which the policy is kept."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its default. `load` checks what comes from outside; this does not."""

    host: str = text_setting("127.0.0.1", "Address to listen on.")
    port: int = whole_setting(8090, "Port to listen on; 0 takes a free one.", 0, 65_535)
    workers: int = whole_setting(1, "Processes that serve.", 1, 256)
    database_url: str = text_setting(
        "sqlite:///registry.db", "Where the registry is kept: sqlite:///PATH or postgresql://..."
    )
    allow_unsafe_storage: bool = switch_setting(
        "Use a database where SQLite cannot keep it safe: on a network file system, or mounted "
        "into a container as a file alone."
    )
    artifact_roots: tuple[str, ...] = ruled_setting(
        (),
        Rule(
            ValueKind.TEXTS,
            "Directory below which files may be registered in place; none: copies only.",
        ),
    )
    token_file: str | None = text_setting(
        None, "File with the access tokens; none: no tokens are asked."
    )
    require_read_token: bool = switch_setting("Ask for a token on reads as well.")
    insecure: bool = switch_setting("Allow an address other than loopback without a token file.")
    allowed_hosts: tuple[str, ...] = ruled_setting(
        (),
        Rule(
            ValueKind.TEXTS,
            "Name that requests may be sent to beside loopback's, as behind a proxy on this "
            "machine; others are refused.",
            separator=",",
        ),
    )
    discovery: str | None = text_setting(
        None,
        "Discovery store that the registry is compared with, as a URL; none: it is not.",
    )
    discovery_namespaces: tuple[str, ...] = ruled_setting(
        (),
        Rule(
            ValueKind.TEXTS,
            "Namespace of the discovery store that is compared; none: all.",
            separator=",",
        ),
    )
    public_urls: tuple[str, ...] = ruled_setting(
        (),
        Rule(
            ValueKind.TEXTS,
            "URL under which frontends reach this service, as cards name it; none: its address.",
            separator=",",
        ),
    )
    proxy_for: str | None = text_setting(
        None,
        "Discovery store: be a proxy for the files of its live cards; none: be none.",
    )
    tls_certificate: str | None = text_setting(
        None, "PEM file with the certificate chain to serve HTTPS with; none: plain HTTP."
    )
    tls_key: str | None = text_setting(
        None, "PEM file with the certificate's private key; none: it is in the same file."
    )
    lease_grace_s: float = number_setting(
        seconds_of(DEFAULTS.lease_grace_ms),
        "How long an owner is served after its lease lapsed.",
        0,
        30 * _DAY_S,
    )
    sweep_interval_s: float = number_setting(
        seconds_of(DEFAULTS.sweep_interval_ms), "Pause between two sweeps.", 0.1, _HOUR_S
    )
    upload_grace_s: float = number_setting(
        seconds_of(DEFAULTS.upload_grace_ms),
        "How long uploaded content is kept before it is registered.",
        0,
        7 * _DAY_S,
    )
    tombstone_retention_h: float = number_setting(
        DEFAULTS.tombstone_retention_ms // _H,
        "How long an ended owner is remembered.",
        0,
        24 * 3650,
    )
    journal_retention_d: float = number_setting(
        DEFAULTS.journal_retention_ms // _D, "How long the journal is kept.", 0, 36_500
    )
    scrub_period_h: float = number_setting(
        DEFAULTS.scrub_period_ms // _H,
        "Time in which every file in place is checked once; 0: never.",
        0,
        24 * 3650,
    )
    brake_fraction: float = number_setting(
        DEFAULTS.brake_percent / 100,
        "Expiry pauses when more than this part of the leased owners lapse together.",
        0,
        1,
    )
    brake_min_owners: int = whole_setting(
        DEFAULTS.brake_min_owners,
        "Expiry never pauses for fewer lapsed owners than this.",
        1,
        10**9,
    )
    brake_max_s: float = number_setting(
        seconds_of(DEFAULTS.brake_max_ms), "Longest pause of expiry.", 0, 7 * _DAY_S
    )
    max_body_bytes: int = whole_setting(4 * _MIB, "Largest body of a registration.", 1, _GIB)
    max_artifacts: int = whole_setting(1000, "Most artifacts in one registration.", 1, 10**6)
    # SQLite stores at most 10^9 bytes in one row.
    max_blob_bytes: int = whole_setting(
        64 * _MIB, "Largest file, copied or in place.", 1, 512 * _MIB
    )
    max_manifest_bytes: int = whole_setting(
        2 * _GIB, "Most bytes that the files of one registration have together.", 1, _TIB
    )
    pending_upload_bytes: int = whole_setting(
        4 * _GIB, "Most bytes that are uploaded and not registered.", 1, _TIB
    )
    journal_max_rows: int = whole_setting(
        DEFAULTS.journal_max_rows, "Most rows of the journal.", 1, 10**12
    )
    file_timeout_s: float = number_setting(
        5,
        "How long the file system of a holder's file may take to answer; then another holder is "
        "tried, or the answer is 503.",
        0.1,
        _HOUR_S,
    )
    content_cache_bytes: int = whole_setting(
        128 * _MIB, "Memory of each process for content that it serves.", 0, _TIB
    )
    write_queue_max: int = whole_setting(4096, "Most writes that wait in each process.", 1, 10**6)
    busy_timeout_s: float = number_setting(
        5, "How long a write waits for the database's lock.", 0, 600
    )
    max_connections: int = whole_setting(4096, "Most open connections of each process.", 1, 10**6)
    max_header_bytes: int = whole_setting(
        64 * _KIB, "Largest head of a request: its line and its headers.", _KIB, 16 * _MIB
    )
    body_timeout_s: float = number_setting(
        60,
        "How long the head of a request, or its body, may take to come in (a body a second longer "
        "for every 16 KiB), and how long an answer waits for a reader that takes nothing.",
        0.1,
        _DAY_S,
    )
    min_free_bytes: int = whole_setting(
        64 * _MIB, "Free disk space below which the service is not healthy.", 0, _TIB
    )
    log_level: str = text_setting(
        "info", "What is logged.", ("critical", "error", "warning", "info", "debug")
    )
    log_format: str = text_setting("text", "How log lines are written.", ("text", "json"))


SETTINGS = tuple(
    Setting(each.name, each.default, each.metadata["rule"]) for each in fields(Settings)
)
"""Every setting, in the order of the record."""
_by_name = {setting.name: setting for setting in SETTINGS}
_by_variable = {setting.variable: setting for setting in SETTINGS}


@dataclass(frozen=True, slots=True)
class Resolved:
    """A setting's value and where it comes from: `--port`, `REGISTRY_PORT`, a file, `default`."""

    value: Any
    source: str


def load(
    flags: Mapping[str, object], environ: Mapping[str, str], config_file: Path | None
) -> Settings:
    """The settings to run with: flag, else environment, else TOML file, else default.

    `flags` is by setting name; None and an empty list are flags that were not given. A variable
    that is empty counts as unset.

    Raises:
        SettingsError: a value is not allowed, a key or variable is no setting, or the file cannot
            be read. The message names the key, its source and what is allowed.
    """
    resolved = resolve(flags, environ, config_file)
    return Settings(**{name: each.value for name, each in resolved.items()})


def resolve(
    flags: Mapping[str, object], environ: Mapping[str, str], config_file: Path | None
) -> dict[str, Resolved]:
    """As `load`, with the source of every value.

    Raises:
        SettingsError: as `load`.
    """
    resolved = {setting.name: Resolved(setting.default, "default") for setting in SETTINGS}
    if config_file is not None:
        resolved |= _from_file(config_file)
    return resolved | _from_environ(environ) | _from_flags(flags)


def _from_flags(flags: Mapping[str, object]) -> dict[str, Resolved]:
    found = {}
    for name, value in flags.items():
        setting = _by_name.get(name)
        if setting is None:
            raise _unknown(name, "the flags", _by_name)
        if value is not None and value not in ((), []):
            found[name] = Resolved(_checked(setting, value, setting.flag), setting.flag)
    return found


def _from_environ(environ: Mapping[str, str]) -> dict[str, Resolved]:
    find_strangers(environ)
    found = {}
    for variable, text in environ.items():
        setting = _by_variable.get(variable)
        if setting is None or not text or is_service_link(variable, text):
            continue
        value = _checked(setting, _parsed(setting, text), variable)
        found[setting.name] = Resolved(value, variable)
    return found


def _from_file(config_file: Path) -> dict[str, Resolved]:
    found = {}
    for name, value in _read_toml(config_file).items():
        setting = _by_name.get(name)
        if setting is None:
            raise _unknown(name, str(config_file), _by_name)
        source = f"{name} in {config_file}"
        found[name] = Resolved(_checked(setting, value, source), str(config_file))
    return found


def _read_toml(config_file: Path) -> dict[str, Any]:
    text, _ = read_toml_text(config_file, "settings file")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SettingsError(f"The settings file {config_file} is not TOML: {error}.") from error


_is_whole = re.compile(r"[0-9]{1,18}").fullmatch
_is_number = re.compile(r"[0-9]{1,18}(\.[0-9]{1,18})?").fullmatch
_truths = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(
    ("false", "no", "off", "0"), False
)


def _parsed(setting: Setting, text: str) -> object:
    """The value that a variable's text stands for; the text itself where it stands for none."""
    match setting.rule.kind:
        case ValueKind.SWITCH:
            return _truths.get(text.lower(), text)
        case ValueKind.TEXTS:
            return text.split(setting.rule.separator)
        case ValueKind.WHOLE | ValueKind.NUMBER if _is_whole(text):
            return int(text)
        case ValueKind.NUMBER if _is_number(text):
            return float(text)
    return text


def _checked(setting: Setting, value: object, source: str) -> object:
    """The value as the record holds it, or SettingsError."""
    if not _is_allowed(setting, value):
        raise SettingsError(f"{source} is {shown(value)}; it must be {setting.allowed}.")
    return tuple(value) if isinstance(value, list | tuple) else value


def _is_allowed(setting: Setting, value: object) -> bool:
    rule = setting.rule
    match rule.kind:
        case ValueKind.SWITCH:
            return isinstance(value, bool)
        case ValueKind.TEXTS:
            return isinstance(value, list | tuple) and all(map(_is_filled, value))
        case ValueKind.TEXT:
            return _is_filled(value) and (not rule.choices or value in rule.choices)
        case ValueKind.WHOLE:
            return type(value) is int and rule.low <= value <= rule.high
        case ValueKind.NUMBER:
            # NaN, which TOML can spell, fails every comparison.
            return type(value) in (int, float) and rule.low <= value <= rule.high  # type: ignore[operator]


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


# The environment. Its variables may be others', whatever their names begin with.
def find_strangers(environ: Mapping[str, str]) -> list[str]:
    """Variables with our prefix that are none of ours, sorted: other programs', or mistakes.

    What Kubernetes tells of its Services is not among them, and empty variables are not.

    Raises:
        SettingsError: one is so near to a variable of ours that it is most likely a slip.
    """
    strangers = []
    own = _by_variable.keys() | OTHER_VARIABLES
    for variable in sorted(environ):
        text = environ[variable]
        if not variable.startswith(PREFIX) or not text or variable in own:
            continue
        if is_service_link(variable, text):
            continue
        near = next((each for each in sorted(own) if is_slip(variable, each)), None)
        if near is not None:
            raise SettingsError(
                f"{shown(variable)} in the environment is not a setting. Did you mean {near}? If "
                "it belongs to another program, unset it for this one."
            )
        strangers.append(variable)
    return strangers


def _unknown(name: str, source: str, known: Mapping[str, Setting]) -> SettingsError:
    similar = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {similar[0]}?" if similar else f"There are: {', '.join(sorted(known))}."
    return SettingsError(f"{shown(name)} in {source} is not a setting. {hint}")
