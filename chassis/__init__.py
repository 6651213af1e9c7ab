"""How every process lives: settings, lifecycle, health, errors, logs, metrics, TLS, channels."""
