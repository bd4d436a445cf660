"""What only SQLite needs: its connections, its file, its errors, copies and upgrades."""
