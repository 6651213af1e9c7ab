"""Start, watch and end rollouts from Python.

with Rollouts("127.0.0.1:50050") as rollouts:
    rollouts.set(RolloutPlan(canary="tandem-demo-v1.1.0", steps=..., guard=...))
    for rollout in rollouts.watch():
        print(rollout.changes[-1].reason)

Messages are those of the contract (`tandem.v1.rollout_pb2`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chassis.channels import ChannelTls
from tandem.client.call import DEFAULT_ADDRESS, BlockingConnection
from tandem.v1 import rollout_pb2, rollout_pb2_grpc


class Rollouts(BlockingConnection):
    """An operator's connection to any gateway of the deployment.

    Every call raises the errors of `tandem.errors`. `timeout_s` limits every call except `watch`.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        api_key: str | None = None,
        timeout_s: float | None = 10.0,
        use_proxy: bool = True,
        allow_plaintext: bool = False,
    ) -> None:
        """Prepare a connection. Arguments are those of `Connection`."""
        super().__init__(
            address,
            ca=ca,
            cert=cert,
            key=key,
            api_key=api_key,
            timeout_s=timeout_s,
            use_proxy=use_proxy,
            allow_plaintext=allow_plaintext,
        )

    def _open(self, tls: ChannelTls | None) -> None:
        super()._open(tls)
        self._stub = rollout_pb2_grpc.RolloutsStub(self._channel)

    def get(self) -> rollout_pb2.Rollout:
        """Return the current rollout, or the last one."""
        return self._call(self._stub.Get, rollout_pb2.RolloutsGetRequest()).rollout

    def set(self, plan: rollout_pb2.RolloutPlan) -> rollout_pb2.Rollout:
        """Start a rollout.

        The models of the canary are loaded before it gets traffic.
        """
        return self._call(self._stub.Set, rollout_pb2.RolloutsSetRequest(plan=plan)).rollout

    def promote(self, reason: str = "") -> rollout_pb2.Rollout:
        """Send all requests to the canary."""
        return self._call(self._stub.Promote, rollout_pb2.RolloutsPromoteRequest(reason=reason)).rollout

    def roll_back(self, reason: str = "") -> rollout_pb2.Rollout:
        """Send all new requests to the stable release."""
        return self._call(self._stub.Rollback, rollout_pb2.RolloutsRollbackRequest(reason=reason)).rollout

    def watch(self) -> Iterator[rollout_pb2.Rollout]:
        """Yield the current rollout, and again after every change."""
        envelope = self._envelope()
        call: Any = self._stub.Watch(rollout_pb2.RolloutsWatchRequest(), metadata=envelope.metadata)
        try:
            with envelope.translate_errors():
                for response in call:
                    yield response.rollout
        finally:
            call.cancel()
