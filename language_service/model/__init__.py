"""The decoder in pure torch: no scheduling, no transport."""
