"""The service as the proxy of frontends that fetch metadata files from workers, for those alone."""

from __future__ import annotations

from registry.errors import SettingsError


def check_store(url: str | None) -> None:
    """Raise SettingsError where the store that the setting `proxy_for` names cannot be one."""
    if url is None:
        return
    from registry.discovery import open_discovery  # Others need no HTTP client.

    try:
        open_discovery(url).close()
    except SettingsError as error:
        raise SettingsError(f"proxy_for: {error.detail}") from None
