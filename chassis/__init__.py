"""How every process lives: settings, lifecycle, health, errors, logs, metrics, TLS, channels."""

import os

# gRPC's core writes to stderr in a form of its own, which no log collector reads, what errors say anyway. It takes this
# from the environment when it is first imported, so it must be set before any module of this package imports it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
