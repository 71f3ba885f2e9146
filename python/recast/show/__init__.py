"""Text for people: one file a command, no data."""
