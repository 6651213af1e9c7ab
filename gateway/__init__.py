"""The gateway: answers clients' requests with the vision and language services."""
