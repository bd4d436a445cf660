"""The engine for a fleet: one PostgreSQL database that several replicas share."""
