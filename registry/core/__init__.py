"""Words that every room uses: records, names, hashing. Imports nothing of ours but errors."""
