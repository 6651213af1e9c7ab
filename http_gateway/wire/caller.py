"""What a request's headers say about its caller."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from chassis.api_keys import AUTHORIZATION_HEADER
from chassis.errors import InvalidArgument, Unauthenticated
from chassis.request_id import request_id_of

RELEASE_HEADER = "x-tandem-release"

Headers = Iterable[tuple[bytes, bytes]]  # as ASGI has them: names in lower case


@dataclass(frozen=True, slots=True)
class Caller:
    """API key and release pin of one request."""

    authorization: str | None = field(default=None, repr=False)  # 'Bearer ...', never in a traceback
    release: str | None = None

    @property
    def has_key(self) -> bool:
        """Whether the request has an API key."""
        return self.authorization is not None

    def metadata(self, release: str | None = None) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call.

        Args:
            release: release to pin, unless a header pins one.
        """
        pin = self.release or release
        key = ((AUTHORIZATION_HEADER, self.authorization),) if self.authorization is not None else ()
        return (*key, (RELEASE_HEADER, pin)) if pin else key


def caller_of(headers: Headers) -> Caller:
    """Return the caller of a request.

    Raises:
        Unauthenticated: reason 'BAD_AUTHORIZATION', the key cannot be passed on.
        InvalidArgument: reason 'BAD_TAG', the release cannot be passed on.
    """
    keys = values_of(headers, AUTHORIZATION_HEADER.encode())
    if len(keys) > 1 or not all(_is_printable(key) for key in keys):
        raise Unauthenticated("Send exactly one API key, as 'authorization: Bearer <key>'.", reason="BAD_AUTHORIZATION")
    releases = values_of(headers, RELEASE_HEADER.encode())
    if len(releases) > 1 or not all(_is_printable(release) for release in releases):
        raise InvalidArgument(f"Send one tag of a release as {RELEASE_HEADER}.", reason="BAD_TAG", field=RELEASE_HEADER)
    return Caller(
        authorization=keys[0].decode() if keys else None, release=releases[0].decode() or None if releases else None
    )


def request_id_from(headers: Headers) -> str:
    """Return the headers' request id, or a fresh one."""
    return request_id_of((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def values_of(headers: Headers, name: bytes) -> list[bytes]:
    """Return all values of a header."""
    return [value for key, value in headers if key == name]


def _is_printable(value: bytes) -> bool:
    """Return whether gRPC metadata can hold a value."""
    return value.isascii() and value.decode("ascii").isprintable()
