"""API keys: create them, send them and read them from a call.

A server stores only the SHA-256 of a key. Slow password hashes are not needed, because a key is 32 random bytes and
cannot be guessed.
"""

import hashlib
import secrets
from collections.abc import Iterable

from chassis.errors import InvalidArgument, Unauthenticated

AUTHORIZATION_HEADER = "authorization"
TENANT_NAME = r"^[A-Za-z0-9._-]{1,64}$"  # valid tenant names in a key file. They appear in logs and metrics

_PREFIX = "tandem_"  # lets scanners for leaked secrets recognize a key
_SCHEME = "Bearer "


def new_key() -> str:
    """Return a fresh key, 50 characters of [A-Za-z0-9_-]."""
    return _PREFIX + secrets.token_urlsafe(32)


def key_sha256(key: str) -> str:
    """Return the SHA-256 of `key` as 64 hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def authorization(key: str) -> tuple[str, str]:
    """Return the metadata entry that sends `key` with a call.

    Raises:
        InvalidArgument: reason 'BAD_API_KEY', the key has characters that gRPC metadata cannot hold.
    """
    if not (key.isascii() and key.isprintable()):
        raise InvalidArgument(
            "The API key must be printable ASCII: copy it again, without line breaks.", reason="BAD_API_KEY"
        )
    return AUTHORIZATION_HEADER, _SCHEME + key


def api_key_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the API key in a call's metadata.

    Raises:
        Unauthenticated: there is no key, more than one, or another scheme. The message repeats nothing of it.
    """
    values = [value for name, value in metadata or () if name == AUTHORIZATION_HEADER]
    if not values:
        raise Unauthenticated("Send an API key as 'authorization: Bearer <key>'.", reason="NO_API_KEY")
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or not value.startswith(_SCHEME):
        raise Unauthenticated("Send exactly one API key, as 'authorization: Bearer <key>'.", reason="BAD_AUTHORIZATION")
    return value.removeprefix(_SCHEME).strip()
