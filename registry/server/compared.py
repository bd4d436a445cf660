"""Settings of the comparison with discovery, checked before the first request."""

from __future__ import annotations

import socket
from dataclasses import replace

from registry.config import Settings
from registry.core.checks import check_name
from registry.core.public_urls import PublicUrls, public_urls_of
from registry.errors import Invalid, SettingsError


def check_discovery(settings: Settings) -> None:
    """Raise SettingsError for a discovery store, namespaces or public URLs that are none."""
    PublicUrls(settings.public_urls)
    if settings.discovery is None:
        if settings.discovery_namespaces:
            raise SettingsError(
                "discovery_namespaces says what of a discovery store is compared, but there is no "
                "store. Give its URL with --discovery."
            )
        return
    from registry.discovery import open_discovery  # Others need none.

    try:
        open_discovery(settings.discovery).close()
        for namespace in settings.discovery_namespaces:
            check_name("discovery_namespaces", namespace)
    except SettingsError as error:
        raise SettingsError(f"discovery: {error.detail}") from None
    except Invalid as error:
        raise SettingsError(error.detail) from None


def with_public_urls(settings: Settings, host: str, listener: socket.socket) -> Settings:
    """The settings with the URLs under which the service is reached: those given, or the address
    that it listens on, by the name that was given for it as well.

    Raises:
        SettingsError: it is compared with discovery, and nobody can tell its URL.
    """
    if settings.public_urls:
        return settings
    scheme = "http" if settings.tls_certificate is None else "https"
    address, port = listener.getsockname()[:2]
    urls = public_urls_of(scheme, (host, address), port)
    if settings.discovery is not None and not urls:
        raise SettingsError(
            f"host is {host}, which does not say under which URL frontends reach this service, so "
            "that the URLs of cards cannot be compared with it. Give the URL that workers put into "
            "their cards, with --public-url."
        )
    return replace(settings, public_urls=urls)
