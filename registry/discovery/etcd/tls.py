"""Certificates for an etcd: whom to believe, and the own one if there is one."""

from __future__ import annotations

import os
import ssl
import tempfile
from pathlib import Path

import httpx2

from registry.core.settings_files import read_file
from registry.discovery.etcd.settings import TlsFiles
from registry.errors import SettingsError

PEM_MAX_BYTES = 16 << 20


def tls_context(files: TlsFiles) -> ssl.SSLContext:
    """What connections to an etcd are made with. Without authorities of its own, those that
    SSL_CERT_FILE or SSL_CERT_DIR names are believed, and without these the system's.

    Raises:
        SettingsError: a file cannot be used.
    """
    if files.ca is None:
        context = _usual_trust()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        name = "authorities for etcd (ETCD_AUTH_CA, ca_file)"
        try:
            context.load_verify_locations(cadata=_pem(files.ca, name).decode("ascii", "ignore"))
        except (OSError, ValueError) as error:
            raise _unusable(name, error) from None
    if files.cert is not None and files.key is not None:
        _load_own(context, files.cert, files.key)
    return context


def _usual_trust() -> ssl.SSLContext:
    try:
        return httpx2.create_ssl_context()
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"The authorities that SSL_CERT_FILE or SSL_CERT_DIR names cannot be used: {error}. "
            "Unset it or set it right, or name a file with ETCD_AUTH_CA."
        ) from None


def _load_own(context: ssl.SSLContext, cert: str, key: str) -> None:
    name = "client certificate for etcd (ETCD_AUTH_CLIENT_CERT, cert_file)"
    key_name = "key of the client certificate for etcd (ETCD_AUTH_CLIENT_KEY, key_file)"
    both = _pem(cert, name) + b"\n" + _pem(key, key_name)
    try:
        # Python takes these from a file alone. This one only the own user can read.
        with tempfile.NamedTemporaryFile(prefix="registry-etcd-") as file:
            file.write(both)
            file.flush()
            # A key with a password would be asked for on the terminal.
            context.load_cert_chain(file.name, password="")
    except (OSError, ValueError) as error:
        raise _unusable(f"{name} or its key", error) from None


def _pem(text: str, name: str) -> bytes:
    """What stands in a file, or in the setting itself."""
    if "-----BEGIN" in text:
        return text.encode()
    return read_file(Path(os.path.expanduser(text)), name, max_bytes=PEM_MAX_BYTES)[0]


def _unusable(name: str, error: Exception) -> SettingsError:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return SettingsError(
        f"The {name} cannot be used: {reason}. It must be in PEM form, without a password."
    )
