"""The service as the proxy of frontends that fetch metadata files from workers, for those alone."""
