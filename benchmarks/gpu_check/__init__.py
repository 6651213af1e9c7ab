"""Check on a GPU whatever needs one: `make gpu-check`."""
