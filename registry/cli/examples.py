"""An example or two for each command, shown at the end of its help."""

from __future__ import annotations

from collections.abc import Callable

PROGRAM = "metadata-registry"

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "demo",
        "serve --artifact-root /models",
        "attach /models/llama --name llama --endpoint prod/backend/generate",
        "models",
    ),
    "serve": (
        "serve",
        "serve --artifact-root /models --database-url sqlite:////var/lib/registry/registry.db",
        "serve --host 0.0.0.0 --token-file /etc/registry/tokens.toml --workers 4",
        "serve --config /etc/registry/registry.toml",
    ),
    "demo": ("demo", "demo --directory /tmp/demo --port 0"),
    "db": ("db check", "db backup /backups/registry.db"),
    "db upgrade": ("db upgrade", "db upgrade 0003 --database-url sqlite:///registry.db"),
    "db downgrade": ("db downgrade 0003", "db downgrade 0003 --yes"),
    "db backup": (
        "db backup /backups/registry-today.db",
        "db backup copy.db --database-url sqlite:////var/lib/registry/registry.db",
    ),
    "db restore": ("db restore /backups/registry.db", "db restore /backups/registry.db --force"),
    "db copy": (
        "db copy --from sqlite:///registry.db --to postgresql://registry@db.example/registry",
    ),
    "db current": ("db current", "db current --json"),
    "db history": ("db history",),
    "db check": ("db check --database-url sqlite:///registry.db",),
    "token": (
        "token new --role read --token-file tokens.toml",
        "token list --token-file tokens.toml",
    ),
    "token new": (
        "token new --role admin --name ops --token-file tokens.toml",
        "token new --role write --namespace prod --slug 'llama-*' --token-file tokens.toml",
    ),
    "token list": ("token list --token-file tokens.toml",),
    "token revoke": ("token revoke ops --token-file tokens.toml",),
    "config": ("config show",),
    "config show": ("config show", "config show --config registry.toml --port 9000"),
    "doctor": (
        "doctor",
        "doctor --config /etc/registry/registry.toml",
        "doctor --url https://registry.example --json",
    ),
    "attach": (
        "attach /models/llama --name llama --endpoint prod/backend/generate",
        "attach /models/llama --name llama --endpoint prod/backend/generate --in-place --hold",
        "attach /loras/law --name llama --lora law --endpoint prod/backend/generate",
    ),
    "detach": ("detach prod/backend/generate/7/_base",),
    "renew": ("renew prod/backend/generate/7/_base",),
    "drain": ("drain prod/backend/generate/7/_base --deadline-s 60",),
    "rm": ("rm llama --dry-run", "rm llama/_base", "rm llama/law --yes"),
    "fetch": (
        "fetch llama --to ./llama",
        "fetch llama --suffix law --url https://registry.example",
    ),
    "mirror": (
        "mirror etcd://etcd.example:2379 --dry-run",
        "mirror etcd://etcd.example:2379 --mode rewrite --public-url https://registry.example",
    ),
    "ls": ("ls", "ls --slug llama --sort size"),
    "owners": ("owners --namespace prod", "owners prod/backend/generate/7/_base"),
    "models": ("models", "models --unserveable --quiet"),
    "events": ("events --follow", "events --slug llama --kind removed --last 50"),
    "explain": ("explain llama/_base/config.json",),
    "health": ("health --url http://127.0.0.1:8090",),
    "sql": (
        'sql "SELECT * FROM leaks"',
        'sql "SELECT refs, bytes FROM owner_footprint" --csv --url https://registry.example',
    ),
    "audit": (
        "audit",
        "audit --class missing_file --check-files",
        "audit --discovery etcd://etcd.example:2379",
        "audit --url https://registry.example --json",
    ),
    "sweep": ("sweep --dry-run", "sweep --release-brake"),
    "verify": ("verify --database-url sqlite:////backups/registry.db",),
}
"""By how a command is called; the program itself has the empty name."""


def shown(name: str, wanted: Callable[[str], bool] = lambda line: True) -> str | None:
    """The end of a command's help, with the examples that are wanted; None: there are none."""
    lines = [f"  {PROGRAM} {line}" for line in EXAMPLES.get(name, ()) if wanted(line)]
    if not lines:
        return None
    # The first line says that the others are not to be wrapped.
    return "\n".join(["\b", "Example:" if len(lines) == 1 else "Examples:", *lines])
