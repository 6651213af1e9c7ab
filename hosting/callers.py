"""Check who calls a stage, by the names in client certificates."""

from collections.abc import Sequence
from typing import Any

from chassis.errors import PermissionDenied

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class Callers:
    """Names of the client certificates that may call a stage.

    A certificate's names are its DNS names, addresses and URIs, or else its common name. They are compared exactly.
    Health checks and reflection are open to every certificate of the authority.
    """

    def __init__(self, *, clients: Sequence[str] = (), loaders: Sequence[str] = ()) -> None:
        """Allow these names.

        Args:
            clients: names that may make every call. None allows everybody who can connect.
            loaders: names that may load and unload models, and make every other call. None allows all of `clients`.
        """
        self._loaders = frozenset(name.encode() for name in loaders or clients)
        self._clients = frozenset(name.encode() for name in (*clients, *loaders)) if clients else frozenset()

    def check(self, context: Context) -> None:
        """Check that the peer may ask for work.

        Raises:
            PermissionDenied: reason 'NOT_A_CLIENT'.
        """
        if self._clients and self._clients.isdisjoint(_names(context)):
            raise PermissionDenied(
                "This certificate may not call the service: let its operator name it in --tls-clients.",
                reason="NOT_A_CLIENT",
            )

    def name_of(self, _method: str, context: Context) -> str:
        """Check the peer before its request is read, and return its first name.

        Raises:
            PermissionDenied: see `check`.
        """
        self.check(context)
        return next((name.decode(errors="replace") for name in _names(context)), "")

    def check_loader(self, context: Context) -> None:
        """Check that the peer may load and unload models.

        Raises:
            PermissionDenied: reason 'NOT_A_LOADER'.
        """
        if self._loaders and self._loaders.isdisjoint(_names(context)):
            raise PermissionDenied(
                "This certificate may not load or unload models: let the operator of the service name it in "
                "--tls-loaders.",
                reason="NOT_A_LOADER",
            )


def _names(context: Context) -> Sequence[bytes]:
    return tuple(context.peer_identities() or ())
