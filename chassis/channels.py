"""Client channels: how one process calls another."""

import json
from collections.abc import Callable, Iterable
from typing import Any

import grpc

from chassis.network import DEFAULT_MAX_MESSAGE_BYTES, split_address
from chassis.request_id import REQUEST_ID_HEADER, current_request_id
from chassis.tls import ChannelTls
from chassis.tracing import TRACEPARENT_HEADER, traceparent

__all__ = ["ChannelTls", "check_target", "open_blocking_channel", "open_channel"]

_SERVICE_CONFIG = {
    # A name that stands for several servers (dns:///name of a headless service) is used in turn, not the first only.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            # gRPC tries again only while nothing of an answer has come, so a stream that began is never repeated.
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


def check_target(target: str) -> None:
    """Check that a server can be called so: gRPC takes a URL or a missing port for a server that is not there.

    Raises:
        ValueError: it is neither 'host:port' nor 'dns:///host:port'.
    """
    address = target.rpartition("/")[2] if target.startswith("dns:") else target
    if "/" in address:
        raise ValueError("must be host:port, without http:// before it")
    host, _port = split_address(address)
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError("must be host:port with a host whose names are 1 to 63 characters each") from None


def open_channel(
    target: str,
    *,
    tls: ChannelTls | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    authority: str | None = None,
) -> grpc.aio.Channel:
    """Open a channel with keepalive, retries of UNAVAILABLE and load balancing.

    Its calls carry the current request id, and the current span where traces are on.

    Nothing is connected before the first call. The channel belongs to the running event loop; close it.

    Args:
        target: 'host:port', or 'dns:///host:port' as gRPC names things.
        tls: how to secure it; None is plain text.
        max_message_bytes: largest message taken, bytes.
        authority: the name the server goes by and its certificate must bear, where `target` is one of its addresses.

    Raises:
        FailedPrecondition: reason 'BAD_TLS'; the TLS files cannot be used.
    """
    options = _channel_options(max_message_bytes)
    if authority is not None:
        options += [("grpc.default_authority", authority), ("grpc.ssl_target_name_override", authority)]
    if tls is None:
        channel = grpc.aio.insecure_channel(target, options=options)
    else:
        channel = grpc.aio.secure_channel(target, tls.credentials(), options=options)
    return _RequestChannel(channel)


def open_blocking_channel(
    target: str, *, tls: ChannelTls | None = None, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
) -> grpc.Channel:
    """Open the same channel for callers without asyncio, who send a request id of their own; it is thread-safe."""
    options = _channel_options(max_message_bytes)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, tls.credentials(), options=options)


def _channel_options(max_message_bytes: int) -> list[tuple[str, str | int]]:
    return [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the receiver says what is too large
        # Only a request that is held can be sent again; the default, 256 KiB, would leave images without retries.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # A peer that vanished without a word is noticed within 30 s, even while a long stream is silent.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Between two tries to connect lies less time than a call is retried for, at most 0.48 s against at least 0.56
        # (both vary by 20 %), so that a call finds a server which is there when it begins. gRPC by itself waits up to
        # two minutes, and calls fail meanwhile.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 400),
    ]


class _RequestChannel(grpc.aio.Channel):
    """A channel whose calls carry the current request id and span.

    A wrapper and not gRPC's client interceptors: those start a task a call and pass every message of a stream through
    queues, while this adds two entries to the metadata and hands out gRPC's own call, with its own cancellation.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    async def __aenter__(self) -> "_RequestChannel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._channel.channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _within_request(self._channel.unary_unary(*args, **kwargs))

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _within_request(self._channel.unary_stream(*args, **kwargs))

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _within_request(self._channel.stream_unary(*args, **kwargs))

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _within_request(self._channel.stream_stream(*args, **kwargs))


def _within_request(multicallable: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap one method of a stub, of any of the four kinds."""

    def call(*args: Any, metadata: Iterable[tuple[str, str | bytes]] | None = None, **kwargs: Any) -> Any:
        ours = {REQUEST_ID_HEADER: current_request_id(), TRACEPARENT_HEADER: traceparent()}
        known = [(name, value) for name, value in ours.items() if value is not None]
        if known:
            others = [pair for pair in metadata or () if ours.get(pair[0]) is None]
            metadata = (*others, *known)
        return multicallable(*args, metadata=metadata, **kwargs)

    return call
