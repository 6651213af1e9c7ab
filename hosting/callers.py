"""Check who calls a stage, by the names in client certificates."""

from collections.abc import Sequence
from typing import Any

from chassis.errors import PermissionDenied

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods

_LOADING = frozenset({"LoadModel", "UnloadModel"})


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

    def name_of(self, method: str, context: Context) -> str:
        """Check the peer of a call, and return its name.

        Args:
            method: such as 'LoadModel'.
            context: of the call, whose request need not be read.

        Raises:
            PermissionDenied: reason 'NOT_A_CLIENT' or 'NOT_A_LOADER'.
        """
        names = tuple(context.peer_identities() or ())
        if method in _LOADING:
            if self._loaders and self._loaders.isdisjoint(names):
                raise PermissionDenied(
                    "This certificate may not load or unload models: let the operator of the service name it in "
                    "--tls-loaders.",
                    reason="NOT_A_LOADER",
                )
        elif self._clients and self._clients.isdisjoint(names):
            raise PermissionDenied(
                "This certificate may not call the service: let its operator name it in --tls-clients.",
                reason="NOT_A_CLIENT",
            )
        return names[0].decode(errors="replace") if names else ""
