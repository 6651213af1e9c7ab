"""The vision stage: turns images into visual tokens."""
