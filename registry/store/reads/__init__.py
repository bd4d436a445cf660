"""Everything that looks. Nothing here writes."""
