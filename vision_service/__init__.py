"""Images to visual tokens."""
