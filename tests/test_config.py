"""Settings: defaults, the four sources and which of them wins, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from registry.config import OTHER_VARIABLES, SETTINGS, Settings, find_strangers, load, resolve
from registry.errors import SettingsError
from tests.commands import run_here

DEFAULTS: dict[str, Any] = {
    "host": "127.0.0.1",
    "port": 8090,
    "workers": 1,
    "database_url": "sqlite:///registry.db",
    "allow_unsafe_storage": False,
    "artifact_roots": (),
    "token_file": None,
    "require_read_token": False,
    "insecure": False,
    "allowed_hosts": (),
    "discovery": None,
    "discovery_namespaces": (),
    "public_urls": (),
    "proxy_for": None,
    "tls_certificate": None,
    "tls_key": None,
    "lease_grace_s": 300,
    "sweep_interval_s": 10,
    "upload_grace_s": 900,
    "tombstone_retention_h": 24,
    "journal_retention_d": 90,
    "scrub_period_h": 24,
    "brake_fraction": 0.3,
    "brake_min_owners": 3,
    "brake_max_s": 900,
    "max_body_bytes": 4 * 1024**2,
    "max_artifacts": 1000,
    "max_blob_bytes": 64 * 1024**2,
    "max_manifest_bytes": 2 * 1024**3,
    "pending_upload_bytes": 4 * 1024**3,
    "journal_max_rows": 10_000_000,
    "file_timeout_s": 5,
    "content_cache_bytes": 128 * 1024**2,
    "write_queue_max": 4096,
    "busy_timeout_s": 5,
    "max_connections": 4096,
    "max_header_bytes": 64 * 1024,
    "body_timeout_s": 60,
    "min_free_bytes": 64 * 1024**2,
    "log_level": "info",
    "log_format": "text",
}


def written(folder: Path, text: str) -> Path:
    path = folder / "registry.toml"
    path.write_text(text)
    return path


def test_the_defaults_are_those_that_users_are_told() -> None:
    assert dataclasses.asdict(load({}, {}, None)) == DEFAULTS


def test_every_default_is_an_allowed_value() -> None:
    given = {name: value for name, value in DEFAULTS.items() if value is not None}
    assert load(given, {}, None) == Settings()


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path) -> None:
    file = written(tmp_path, "port = 1\nworkers = 2\nlease_grace_s = 3")
    environ = {"REGISTRY_PORT": "11", "REGISTRY_WORKERS": "12"}
    settings = load({"port": 21}, environ, file)
    assert (settings.port, settings.workers, settings.lease_grace_s) == (21, 12, 3)
    assert settings.max_artifacts == 1000


def test_the_source_of_every_value_is_known(tmp_path: Path) -> None:
    file = written(tmp_path, "lease_grace_s = 3")
    found = resolve({"port": 21}, {"REGISTRY_WORKERS": "12"}, file)
    sources = {name: found[name].source for name in ("port", "workers", "lease_grace_s", "host")}
    assert sources == {
        "port": "--port",
        "workers": "REGISTRY_WORKERS",
        "lease_grace_s": str(file),
        "host": "default",
    }
    assert list(found) == [setting.name for setting in SETTINGS]


def test_flags_that_were_not_given_change_nothing() -> None:
    assert load({"port": None, "artifact_roots": []}, {}, None) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("REGISTRY_ARTIFACT_ROOTS", "/a:/b c", "artifact_roots", ("/a", "/b c")),
        ("REGISTRY_ALLOWED_HOSTS", "a.b,::1", "allowed_hosts", ("a.b", "::1")),
        ("REGISTRY_LEASE_GRACE_S", "2.5", "lease_grace_s", 2.5),
        ("REGISTRY_LEASE_GRACE_S", "0", "lease_grace_s", 0),
        ("REGISTRY_INSECURE", "TRUE", "insecure", True),
        ("REGISTRY_INSECURE", "0", "insecure", False),
        ("REGISTRY_TOKEN_FILE", "/etc/tokens", "token_file", "/etc/tokens"),
        ("REGISTRY_LOG_FORMAT", "json", "log_format", "json"),
        ("REGISTRY_PORT", "", "port", 8090),
    ],
)
def test_variables_are_read(variable: str, text: str, name: str, value: object) -> None:
    assert getattr(load({}, {variable: text}, None), name) == value


def service_links(name: str, host: str, *ports: tuple[str, str, int]) -> dict[str, str]:
    """What Kubernetes puts into the environment for a Service, as its documentation says it."""
    prefix = name.upper().replace("-", "_")
    (_, first_protocol, first), *_ = ports
    links = {
        f"{prefix}_SERVICE_HOST": host,
        f"{prefix}_SERVICE_PORT": str(first),
        f"{prefix}_PORT": f"{first_protocol}://{host}:{first}",
    }
    for port_name, protocol, port in ports:
        if port_name:
            links[f"{prefix}_SERVICE_PORT_{port_name.upper().replace('-', '_')}"] = str(port)
        link = f"{prefix}_PORT_{port}_{protocol.upper()}"
        links[link] = f"{protocol}://{host}:{port}"
        links |= {f"{link}_PROTO": protocol, f"{link}_PORT": str(port), f"{link}_ADDR": host}
    return links


@pytest.mark.parametrize(
    "name",
    [
        *("registry", "registry-auth", "registry-port", "registry-service", "registry-token"),
        *(
            "registry-host",
            "registry-workers",
            "registry-database-url",
            "registry-2",
            "registry-ui",
        ),
        *("registry-port-80-tcp", "registry-service-port", "registry-log-level", "registry-config"),
    ],
)
def test_what_kubernetes_sets_for_a_service_of_any_name_is_left_alone(name: str) -> None:
    for host in ("10.0.0.7", "fd00::7"):
        ports = ("", "tcp", 80), ("http-metrics", "tcp", 9090), ("dns", "udp", 53)
        environ = service_links(name, host, *ports)
        assert load({}, environ, None) == Settings()
        assert find_strangers(environ) == []


def test_no_setting_is_named_like_a_service_link_but_the_port() -> None:
    names = [setting.variable for setting in SETTINGS] + sorted(OTHER_VARIABLES)
    taken = [
        name for name in names if re.search("_SERVICE_(HOST|PORT)|_PORT(_[0-9]+_(TCP|UDP))?", name)
    ]
    assert taken == ["REGISTRY_PORT"]


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("REGISTRY_PROT", "REGISTRY_PORT"),
        ("REGISTRY_HOTS", "REGISTRY_HOST"),
        ("REGISTRY_TOKN", "REGISTRY_TOKEN"),
        ("REGISTRY_TOKENFILE", "REGISTRY_TOKEN_FILE"),
        ("REGISTRY_LEASE_GRACE", "REGISTRY_LEASE_GRACE_S"),
        ("REGISTRY_LEASE_GRACE_MS", "REGISTRY_LEASE_GRACE_S"),
        ("REGISTRY_ARTIFACT_ROOT", "REGISTRY_ARTIFACT_ROOTS"),
        ("REGISTRY_DATABSE_URL", "REGISTRY_DATABASE_URL"),
        ("REGISTRY_log_level", "REGISTRY_LOG_LEVEL"),
    ],
)
def test_a_slip_in_a_variable_is_refused_with_the_name_that_was_meant(
    variable: str, near: str
) -> None:
    with pytest.raises(SettingsError, match=f"Did you mean {near}\\?"):
        load({}, {variable: "1"}, None)
    assert load({}, {variable: ""}, None) == Settings()


@pytest.mark.parametrize(
    "variable",
    [
        *("REGISTRY_AUTH_FILE", "REGISTRY_HTTP_ADDR", "REGISTRY_HTTP_TLS_KEY", "REGISTRY_USER"),
        *("REGISTRY_STORAGE_FILESYSTEM_ROOTDIRECTORY", "REGISTRY_AUTH_HTPASSWD_PATH"),
        *(
            "REGISTRY_PASSWORD",
            "REGISTRY_URI",
            "REGISTRY_NAME",
            "REGISTRY_IMAGE",
            "REGISTRY_DOMAIN",
        ),
        *("REGISTRY_STORAGE_S3_BUCKET", "REGISTRY_AUTH", "REGISTRY_NAMESPACE", "REGISTRY_"),
    ],
)
def test_a_variable_of_another_program_is_known_to_be_none_of_ours(variable: str) -> None:
    assert load({}, {variable: "1"}, None) == Settings()
    assert find_strangers({variable: "1"}) == [variable]


def test_the_variables_of_the_commands_are_no_unknown_settings() -> None:
    assert load({}, {"REGISTRY_URL": "http://h", "REGISTRY_CONFIG": "f"}, None) == Settings()


@pytest.mark.parametrize(
    ("variable", "text", "allowed"),
    [
        ("REGISTRY_PORT", "65536", "a whole number from 0 to 65535"),
        ("REGISTRY_PORT", "-1", "a whole number from 0 to 65535"),
        ("REGISTRY_PORT", "80.5", "a whole number from 0 to 65535"),
        ("REGISTRY_PORT", " 80", "a whole number from 0 to 65535"),
        ("REGISTRY_PORT", "٨", "a whole number from 0 to 65535"),
        ("REGISTRY_LEASE_GRACE_S", "nan", "a number from 0 to"),
        ("REGISTRY_LEASE_GRACE_S", "1e3", "a number from 0 to"),
        ("REGISTRY_BRAKE_FRACTION", "1.1", "a number from 0 to 1"),
        ("REGISTRY_INSECURE", "maybe", "true or false"),
        ("REGISTRY_LOG_LEVEL", "loud", "one of critical, error, warning, info, debug"),
        ("REGISTRY_ARTIFACT_ROOTS", "/a::/b", "a list of texts that are not empty"),
    ],
)
def test_a_bad_variable_is_refused_by_name(variable: str, text: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({}, {variable: text}, None)
    assert f"{variable} is" in refused.value.detail
    assert allowed in refused.value.detail


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("port = true", "a whole number from 0 to 65535"),
        ("port = 80.0", "a whole number from 0 to 65535"),
        ('port = "80"', "a whole number from 0 to 65535"),
        ("lease_grace_s = nan", "a number from 0 to"),
        ("lease_grace_s = inf", "a number from 0 to"),
        ("lease_grace_s = true", "a number from 0 to"),
        ("insecure = 1", "true or false"),
        ('host = ""', "a text that is not empty"),
        ("host = 1", "a text that is not empty"),
        ('artifact_roots = "/models"', "a list of texts"),
        ("artifact_roots = [1]", "a list of texts"),
    ],
)
def test_a_bad_value_in_the_file_is_refused_by_name(
    tmp_path: Path, line: str, allowed: str
) -> None:
    file = written(tmp_path, line)
    with pytest.raises(SettingsError) as refused:
        load({}, {}, file)
    assert refused.value.detail.startswith(f"{line.split()[0]} in {file} is ")
    assert allowed in refused.value.detail


def test_a_bad_flag_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"^--artifact-root is \[''\]; it must be a list"):
        load({"artifact_roots": [""]}, {}, None)


def test_lists_in_the_file_are_read(tmp_path: Path) -> None:
    file = written(tmp_path, 'artifact_roots = ["/a", "/b"]')
    assert load({}, {}, file).artifact_roots == ("/a", "/b")


def test_an_unknown_key_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^'prot' in the flags is .* mean port\?$"):
        load({"prot": 1}, {}, None)
    with pytest.raises(SettingsError, match=r"in the environment is .* mean REGISTRY_PORT\?"):
        load({}, {"REGISTRY_PROT": "1"}, None)
    file = written(tmp_path, "[server]\nport = 1")
    with pytest.raises(SettingsError, match=r"^'server' in .*\.toml is .* There are: "):
        load({}, {}, file)


def test_a_file_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(SettingsError, match=r"missing\.toml cannot be read: No such file"):
        load({}, {}, missing)
    with pytest.raises(SettingsError, match=r"registry\.toml is not TOML"):
        load({}, {}, written(tmp_path, "port = "))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"binary\.toml is not TOML"):
        load({}, {}, binary)


def test_settings_survive_the_way_to_a_worker_process() -> None:
    settings = load({"artifact_roots": ["/ä"], "lease_grace_s": 0.5, "token_file": "t"}, {}, None)
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_every_setting_has_a_flag_a_variable_and_a_help() -> None:
    for setting in SETTINGS:
        assert setting.rule.help.endswith(".")
        assert setting.flag.removeprefix("--").replace("-", "_") in setting.name
        assert setting.variable == f"REGISTRY_{setting.name.upper()}"


# config show


def shown(*arguments: object, **variables: str) -> dict[str, list[str]]:
    """The table that `config show` prints, by setting."""
    done = run_here("config", "show", *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["SETTING", "VALUE", "SOURCE"]
    return {line.split()[0]: line.split()[1:] for line in lines}


def test_config_show_lists_every_setting_with_its_value_and_its_source(tmp_path: Path) -> None:
    file = written(tmp_path, 'lease_grace_s = 3\nartifact_roots = ["/a", "/b"]')
    found = shown(
        "--config", file, "--port", 21, "--insecure", REGISTRY_WORKERS="12", REGISTRY_LOG_LEVEL=""
    )
    assert list(found) == [setting.name for setting in SETTINGS]
    assert found["port"] == ["21", "--port"]
    assert found["insecure"] == ["true", "--insecure"]
    assert found["workers"] == ["12", "REGISTRY_WORKERS"]
    assert found["lease_grace_s"] == ["3", str(file)]
    assert found["artifact_roots"] == ["/a:/b", str(file)]
    assert found["token_file"] == ["none", "default"]
    assert found["log_level"] == ["info", "default"]


def test_config_show_prints_json_for_programs() -> None:
    done = run_here("config", "show", "--json", "--workers", 3)
    found = json.loads(done.stdout)
    assert list(found) == [setting.name for setting in SETTINGS]
    assert found["workers"] == {"value": 3, "source": "--workers"}
    assert found["artifact_roots"] == {"value": [], "source": "default"}
    assert found["token_file"] == {"value": None, "source": "default"}


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_config_show_keeps_the_password_of_a_url_to_itself(form: list[str]) -> None:
    done = run_here("config", "show", *form, "--database-url", "postgresql://u:geheim@h:5432/db")
    assert "postgresql://u:***@h:5432/db" in done.stdout
    assert "geheim" not in done.stdout


def test_config_show_names_a_wrong_setting_as_the_start_does() -> None:
    done = run_here("config", "show", REGISTRY_WORKERS="many")
    assert (done.returncode, done.stdout) == (2, "")
    assert "REGISTRY_WORKERS is 'many'; it must be a whole number" in done.stderr
