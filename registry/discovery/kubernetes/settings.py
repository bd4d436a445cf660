"""Which cluster and namespace, and who asks: by a URL, and by what kubectl or a pod has.

    kubernetes:[NAMESPACE]

The file that KUBECONFIG names is used, or the account of the pod that this runs in, or
`~/.kube/config`, in this order. Without NAMESPACE it is that of the context, or of the pod.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from registry.core.text import shown, shown_url
from registry.errors import SettingsError

if TYPE_CHECKING:
    from lightkube.config.kubeconfig import SingleConfig

SCHEME = "kubernetes:"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DEFAULT_CONFIG = "~/.kube/config"

_is_namespace = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?").fullmatch


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """An API server, and how it is asked."""

    server: str
    namespace: str
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    auth: httpx2.Auth | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"Kubernetes at {shown_url(self.server)}, namespace {self.namespace}"


def read_settings(
    url: str, environ: Mapping[str, str] = os.environ, *, account: Path = ACCOUNT
) -> KubernetesSettings:
    """What a URL, a configuration file or a pod's account say.

    Raises:
        SettingsError: the extra is not installed, one of them is not well-formed, or there is none.
    """
    namespace = url[len(SCHEME) :]
    if namespace and not _is_namespace(namespace):
        raise SettingsError(
            f"{shown(url)} is not the URL of a Kubernetes namespace; it must look like "
            "kubernetes:NAMESPACE, or kubernetes: for the own one."
        )
    try:
        from lightkube.config.client_adapter import ConnectionParams
        from lightkube.config.models import User
        from lightkube.core.exceptions import ConfigError
    except ImportError:
        raise SettingsError(
            "Discovery by Kubernetes needs a library that is not installed: "
            "pip install 'metadata-registry[kubernetes]'."
        ) from None
    try:
        config = _find_config(environ, account)
        config = config._replace(user=config.user or User())
        found = ConnectionParams().httpx_params(config)
    except (ConfigError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unusable(error) from None
    namespace = namespace or config.namespace
    if not _is_namespace(namespace) or not _is_server(config.cluster.server):
        raise _unusable(f"it names {shown(namespace)} at {shown(shown_url(config.cluster.server))}")
    return KubernetesSettings(
        config.cluster.server.rstrip("/"), namespace, found["verify"], found["auth"]
    )


def _find_config(environ: Mapping[str, str], account: Path) -> SingleConfig:
    import yaml
    from lightkube import KubeConfig
    from lightkube.core.exceptions import ConfigError

    path = environ.get("KUBECONFIG", "")
    if not path and "KUBERNETES_SERVICE_HOST" in environ and (account / "token").exists():
        config = KubeConfig.from_service_account(account)
    elif path and os.pathsep in path:
        raise ConfigError("KUBECONFIG names several files; name the one that has the context")
    elif not path and not Path(DEFAULT_CONFIG).expanduser().is_file():
        raise ConfigError(
            f"KUBECONFIG is not set, there is no {DEFAULT_CONFIG}, and this is no pod that has an "
            "account"
        )
    else:
        try:
            config = KubeConfig.from_file(path or DEFAULT_CONFIG)
        except yaml.YAMLError:
            raise ConfigError(f"{path or DEFAULT_CONFIG} is not in YAML") from None
    found = config.get()
    if found is None:
        raise ConfigError("it has no current context")
    return found


def _is_server(server: str) -> bool:
    try:
        parts = httpx2.URL(server)
    except (httpx2.InvalidURL, TypeError):
        return False
    return parts.scheme in ("http", "https") and bool(parts.host)


def _unusable(error: object) -> SettingsError:
    reason = f"{error} is missing in it" if isinstance(error, KeyError) else str(error)
    return SettingsError(
        f"The configuration for Kubernetes cannot be used: {reason.removesuffix('.')}. Set "
        "KUBECONFIG to a file that kubectl works with, or run this in a pod with an account."
    )
