"""Shared parts of every process: settings, server, channels, errors, logs, metrics, TLS."""

import os

# gRPC's core writes its own log format to stderr, which log collectors cannot parse. Our errors say the same.
# gRPC reads this variable on its first import, so set it before any module of this package imports gRPC.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
