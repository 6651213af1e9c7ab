"""TLS and mutual TLS from PEM files, for servers and for channels."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from chassis.errors import FailedPrecondition


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTls:
    """How a client secures its channel."""

    ca: Path | None = None  # PEM file of the authorities that may have signed the server; None takes the system's
    cert: Path | None = None  # PEM file of the client's own certificate chain, for mutual TLS
    key: Path | None = None  # PEM file of that certificate's private key

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            FailedPrecondition: reason 'BAD_TLS'; a file cannot be read, or certificate and key do not go together.
        """
        if (self.cert is None) != (self.key is None):
            raise _bad("A client certificate and its key must be given together.")
        if self.cert is not None and self.key is not None:
            _check_pair(self.cert, self.key)
        if self.ca is not None:
            _check_authorities(self.ca)
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca), private_key=_read(self.key), certificate_chain=_read(self.cert)
        )


def server_credentials(*, cert: Path | None, key: Path | None, client_ca: Path | None) -> grpc.ServerCredentials | None:
    """Return the credentials of a server, or None without a certificate.

    Args:
        cert: PEM file of the server's certificate chain.
        key: PEM file of the certificate's private key.
        client_ca: PEM file of the authorities whose client certificates are required; None requires none.

    Raises:
        FailedPrecondition: reason 'BAD_TLS'; the files are not a certificate and its key, or not authorities.
    """
    if cert is None or key is None:
        return None
    _check_pair(cert, key)
    if client_ca is not None:
        _check_authorities(client_ca)
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), cert.read_bytes())],
        root_certificates=_read(client_ca),
        require_client_auth=client_ca is not None,
    )


def _check_pair(cert: Path, key: Path) -> None:
    """Check by the standard library: gRPC would fail later, at the first handshake, without saying why."""
    try:
        # The password function keeps OpenSSL from asking for one at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise _bad(f"The TLS certificate and key cannot be used together ({_reason(error)}).") from None


def _check_authorities(ca: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(ca)
    except (OSError, ValueError) as error:
        raise _bad(f"The TLS authorities cannot be used ({_reason(error)}).") from None


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None else None


def _reason(error: Exception) -> str:
    """Say what is wrong with a file without its path or content."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return getattr(error, "strerror", None) or "not PEM"


def _bad(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BAD_TLS")
