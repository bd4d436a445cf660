"""The registry in SQL: tables, operations that write, queries that read, engines."""
