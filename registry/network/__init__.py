"""Ways to another host over HTTP: proxies, certificates, and connections that keep a deadline."""
