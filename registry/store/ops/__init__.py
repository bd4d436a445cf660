"""Everything that writes, a module an operation. Takes lists, answers in kind, never commits."""
