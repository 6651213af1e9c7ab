"""The gateway, which answers clients with both stages."""
