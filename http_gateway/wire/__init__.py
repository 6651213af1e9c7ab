"""Read requests and write responses: callers, bodies, errors, JSON."""
