"""The registry in SQL: tables, engines, the store's operations, the writer."""
