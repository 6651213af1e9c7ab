"""TLS and mutual TLS from PEM files, for servers and channels.

Servers read their files again after they change. Each new connection then uses the new ones.
"""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from chassis.changing_files import ChangingFiles
from chassis.errors import FailedPrecondition


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelTls:
    """TLS files of a client."""

    ca: Path | None = None  # PEM file of the trusted authorities. None uses those of the system
    cert: Path | None = None  # PEM file of the client's own certificate chain, for mutual TLS
    key: Path | None = None  # PEM file of that certificate's private key

    @property
    def files(self) -> tuple[Path | None, ...]:
        """All files, None for those that are not used."""
        return self.ca, self.cert, self.key

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files.

        Raises:
            FailedPrecondition: reason 'BAD_TLS', a file cannot be read, or certificate and key do not match.
        """
        if (self.cert is None) != (self.key is None):
            raise _bad_tls("Give a client certificate and its key together, or neither.")
        if self.cert is not None and self.key is not None:
            _check_pair(self.cert, self.key)
        if self.ca is not None:
            _check_authorities(self.ca)
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca), private_key=_read(self.key), certificate_chain=_read(self.cert)
        )


def server_credentials(*, cert: Path | None, key: Path | None, client_ca: Path | None) -> grpc.ServerCredentials | None:
    """Return the credentials of a server, or None without TLS.

    Args:
        cert: PEM file of the server's certificate chain.
        key: PEM file of the certificate's private key.
        client_ca: PEM file of the authorities of client certificates, which are then required. None requires none.

    Raises:
        FailedPrecondition: reason 'BAD_TLS', a file cannot be read, or certificate and key do not match.
    """
    if cert is None or key is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        _check_pair(cert, key)
        if client_ca is not None:
            _check_authorities(client_ca)
        return grpc.ssl_server_certificate_configuration(
            [(key.read_bytes(), cert.read_bytes())], root_certificates=_read(client_ca)
        )

    files = ChangingFiles([cert, key, client_ca], read)
    used = files.current()

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Return the newest files, None if they are in use."""
        nonlocal used
        newest = files.current()
        if newest is used:
            return None
        used = newest
        return newest

    return grpc.dynamic_ssl_server_credentials(
        used,
        changed,  # type: ignore[arg-type]  # None is documented, but missing from the published type
        require_client_authentication=client_ca is not None,
    )


def server_context(*, cert: Path | None, key: Path | None, client_ca: Path | None) -> ssl.SSLContext | None:
    """Return the TLS of another server, or None without TLS.

    See `server_credentials` for the arguments and errors.
    """
    if cert is None or key is None:
        return None

    def read() -> ssl.SSLContext:
        _check_pair(cert, key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        if client_ca is not None:
            _check_authorities(client_ca)
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    files = ChangingFiles([cert, key, client_ca], read)

    def use_newest(connection: Any, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = files.current()

    context = read()
    context.sni_callback = use_newest  # called in each handshake, with or without a name
    return context


def _check_pair(cert: Path, key: Path) -> None:
    """Check the pair with Python's `ssl`.

    gRPC would fail later, at the first handshake, without a reason.
    """
    try:
        # Without a password function, OpenSSL would ask for a password at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as error:
        raise _bad_tls(
            f"The TLS certificate and key cannot be used ({_reason(error)}): give PEM files of one pair."
        ) from None


def _check_authorities(ca: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(ca)
    except (OSError, ValueError) as error:
        raise _bad_tls(
            f"The TLS authorities cannot be used ({_reason(error)}): give a PEM file of CA certificates."
        ) from None


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path is not None else None


def _reason(error: Exception) -> str:
    """Describe a file's problem without its path or content."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return getattr(error, "strerror", None) or "not PEM"


def _bad_tls(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BAD_TLS")
