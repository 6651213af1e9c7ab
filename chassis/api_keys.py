"""API keys: what a caller shows to say who it is, and the digest a server keeps in its place.

A key is 32 random bytes, so a plain SHA-256 protects it: slow hashes exist for passwords, which people choose and
attackers guess, and would cost every request the time they are meant to cost the attacker.
"""

import hashlib
import secrets
from collections.abc import Iterable

from chassis.errors import InvalidArgument, Unauthenticated

AUTHORIZATION_HEADER = "authorization"
TENANT_NAME = r"^[A-Za-z0-9._-]{1,64}$"  # what a key file may call who has a key; it goes into logs and metrics

_PREFIX = "tandem_"  # lets scanners of leaked secrets know one when they see it
_SCHEME = "Bearer "


def new_key() -> str:
    """Return a fresh key, 50 characters of [A-Za-z0-9_-]."""
    return _PREFIX + secrets.token_urlsafe(32)


def key_sha256(key: str) -> str:
    """Return what a server keeps of `key`: its SHA-256 as 64 hexadecimal digits."""
    return hashlib.sha256(key.encode()).hexdigest()


def authorization(key: str) -> tuple[str, str]:
    """Return the entry of a call's metadata that shows `key`.

    Raises:
        InvalidArgument: it cannot be a key; gRPC would not take it as metadata.
    """
    if not (key.isascii() and key.isprintable()):
        raise InvalidArgument("The API key has characters that no key has.", reason="BAD_API_KEY")
    return AUTHORIZATION_HEADER, _SCHEME + key


def shown_key(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the key a call shows.

    Raises:
        Unauthenticated: it shows none, several, or one in another form; the message repeats nothing of it.
    """
    values = [value for name, value in metadata or () if name == AUTHORIZATION_HEADER]
    if not values:
        raise Unauthenticated("An API key is needed.", reason="NO_API_KEY")
    value = values[0]
    if len(values) > 1 or not isinstance(value, str) or not value.startswith(_SCHEME):
        raise Unauthenticated("The authorization must be 'Bearer' and one API key.", reason="BAD_AUTHORIZATION")
    return value.removeprefix(_SCHEME).strip()
