"""Attacks on a running service and on its clients, bounded in time: `make attack`."""
