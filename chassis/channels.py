"""gRPC channels from one process to another."""

import json
import os
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import grpc

from chassis.changing_files import ChangingFiles
from chassis.network import DEFAULT_MAX_MESSAGE_BYTES, split_address
from chassis.request_id import REQUEST_ID_HEADER, current_request_id
from chassis.spans import TRACEPARENT_HEADER
from chassis.tls import ChannelTls
from chassis.tracing import traceparent

__all__ = [
    "ChannelTls",
    "channel_options",
    "check_target",
    "environment_proxy",
    "open_blocking_channel",
    "open_channel",
]

Metadata = Iterable[tuple[str, str | bytes]]

# Channels that were open before the TLS files changed, for their running calls. The files change rarely.
_NUM_REPLACED = 2

_PROXIES, _NO_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy"), ("no_grpc_proxy", "no_proxy")

# gRPC retries only until the first part of a response arrives, so a started stream is never repeated.
_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
# A client has no connection between the moment its server drains and the one its successor answers. On a busy machine
# that takes more than a second. These retries go on for 2.3 s at least.
_PATIENT_RETRY_POLICY = {**_RETRY_POLICY, "maxAttempts": 5, "initialBackoff": "0.3s"}


def _service_config(watch_health: bool) -> str:
    """Return the service config of a channel, in JSON."""
    retry_policy = _PATIENT_RETRY_POLICY if watch_health else _RETRY_POLICY
    config: dict[str, Any] = {
        # Spread calls over all addresses of a name such as dns:///headless-service. The default uses only the first.
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [{"name": [{}], "retryPolicy": retry_policy}],
    }
    if watch_health:  # a server that drains gets no new calls, and its name is resolved again
        config["healthCheckConfig"] = {"serviceName": ""}
    return json.dumps(config)


def check_target(target: str) -> None:
    """Check that `target` names a host and a port.

    gRPC itself would report a URL or a missing port as an unreachable server.

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
    watch_health: bool = False,
    use_proxy: bool = False,
) -> grpc.aio.Channel:
    """Open a channel with keepalive, retries and load balancing.

    Calls send the current request id, and the current span if tracing is on. Calls that fail with UNAVAILABLE are
    retried. TLS files are read again after they change.

    The channel connects on its first call. It belongs to the running event loop. The caller closes it.

    Args:
        target: 'host:port', or a gRPC name such as 'dns:///host:port'.
        tls: TLS files. None uses plain text.
        max_message_bytes: largest response message, bytes.
        authority: the server's name in its certificate, if `target` is one of its addresses instead.
        watch_health: leave a server that drains for another address of `target`.
        use_proxy: go through the proxy that the environment names. See `environment_proxy`.

    Raises:
        FailedPrecondition: reason 'BAD_TLS', the TLS files cannot be used.
    """
    options = channel_options(max_message_bytes, watch_health, use_proxy)
    if authority is not None:
        options += [("grpc.default_authority", authority), ("grpc.ssl_target_name_override", authority)]
    if tls is None:
        return _Channel(lambda: grpc.aio.insecure_channel(target, options=options))
    files = ChangingFiles(tls.files, tls.credentials)
    return _Channel(lambda: grpc.aio.secure_channel(target, files.current(), options=options), files.num_changes)


def open_blocking_channel(
    target: str,
    *,
    tls: ChannelTls | None = None,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    watch_health: bool = False,
    use_proxy: bool = False,
) -> grpc.Channel:
    """Open the same channel for code without asyncio.

    It is thread-safe. Callers send their own request id.
    """
    options = channel_options(max_message_bytes, watch_health, use_proxy)
    if tls is None:
        return grpc.insecure_channel(target, options=options)
    return grpc.secure_channel(target, tls.credentials(), options=options)


def channel_options(
    max_message_bytes: int, watch_health: bool = False, use_proxy: bool = False
) -> list[tuple[str, str | int]]:
    """Return channel options: keepalive, retries, load balancing.

    Args:
        max_message_bytes: largest response message.
        watch_health: leave a server that drains for another address of the target.
        use_proxy: go through the proxy that the environment names.
    """
    return [
        # gRPC follows http_proxy even to loopback. A proxy knows neither the stages nor this machine.
        ("grpc.enable_http_proxy", int(use_proxy)),
        ("grpc.service_config", _service_config(watch_health)),
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),  # the receiver enforces its own limit
        # A retry needs the buffered request. The default of 256 KiB would exclude requests with images.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes),
        # Detect a dead peer within 30 s, even while a long stream is silent.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        # Reconnect faster than a call gives up, so that a call finds a server that is up when the call starts.
        # The longest pause between attempts is 0.48 s and the shortest retry time of a call is 0.56 s, including the
        # jitter of 20 %. With gRPC's default, pauses grow to two minutes and calls fail meanwhile.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 400),
        # gRPC's default of 30 s would leave a client without a server when pods are replaced.
        ("grpc.dns_min_time_between_resolutions_ms", 500),
    ]


def environment_proxy(target: str) -> str | None:
    """Return 'host:port' of gRPC's proxy to a target.

    Follows gRPC: the first of the variables grpc_proxy, https_proxy and http_proxy, unless the host ends with a name of
    no_grpc_proxy or no_proxy. Address ranges in these two are left to gRPC.

    Args:
        target: 'host:port', or a gRPC name such as 'dns:///host:port'.
    """
    proxy = next((value for name in _PROXIES if (value := os.environ.get(name))), "")
    exempt = next((value for name in _NO_PROXIES if (value := os.environ.get(name))), "")
    host, _port = split_address(target.rpartition("/")[2])
    if not proxy or any(host.endswith(name) for part in exempt.split(",") if (name := part.strip())):
        return None
    return urlsplit(proxy).netloc.rpartition("@")[2] or None  # without a password


class _Channel(grpc.aio.Channel):
    """A channel that sends request id and span with calls.

    It is a wrapper because gRPC's client interceptors start one task per call and copy every stream message through
    queues. The wrapper only adds two metadata entries. It returns gRPC's own call, which handles cancellation.

    After a change of the TLS files, new calls use a new connection. Running ones end on theirs.
    """

    def __init__(self, connect: Callable[[], grpc.aio.Channel], version: Callable[[], int] = lambda: 0) -> None:
        """Open the channel.

        Args:
            connect: opens gRPC's own channel.
            version: changes when the channel must be opened anew.
        """
        self._connect = connect
        self._version = version
        self._opened_version = version()
        self._channel = connect()
        self._replaced: deque[grpc.aio.Channel] = deque(maxlen=_NUM_REPLACED)

    async def __aenter__(self) -> "_Channel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        for channel in (self._channel, *self._replaced):
            await channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._newest().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._newest().channel_ready()

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_unary", args, kwargs)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("unary_stream", args, kwargs)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_unary", args, kwargs)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._method("stream_stream", args, kwargs)

    def _method(self, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """Return one stub method, of any RPC kind."""
        channel = self._newest()
        method = getattr(channel, kind)(*args, **kwargs)

        def call(*call_args: Any, metadata: Metadata | None = None, **call_kwargs: Any) -> Any:
            nonlocal channel, method
            if (newest := self._newest()) is not channel:
                channel, method = newest, getattr(newest, kind)(*args, **kwargs)
            return method(*call_args, metadata=_with_current(metadata), **call_kwargs)

        return call

    def _newest(self) -> grpc.aio.Channel:
        if (version := self._version()) != self._opened_version:
            self._opened_version = version
            self._replaced.append(self._channel)
            self._channel = self._connect()
        return self._channel


def _with_current(metadata: Metadata | None) -> Metadata | None:
    """Add the current request id and span to metadata."""
    current = {REQUEST_ID_HEADER: current_request_id(), TRACEPARENT_HEADER: traceparent()}
    added = [(name, value) for name, value in current.items() if value is not None]
    if not added:
        return metadata
    return (*(pair for pair in metadata or () if current.get(pair[0]) is None), *added)
