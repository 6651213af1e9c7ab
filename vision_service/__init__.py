"""Pictures to visual tokens."""
