"""Compute for a vLLM that another machine leads."""

import asyncio
import multiprocessing
import socket
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

from chassis.errors import FailedPrecondition
from chassis.vital import vital
from language_service.engine.vllm_client import MASTER_ADDRESS, MASTER_PORT, join_leader, process_ids
from language_service.engine.vllm_orphans import OrphanWatcher, kill_all, kill_with_offspring

_WATCH_S = 0.1  # between two looks at vLLM's processes
# Without an answer of the leader's machine before it is asked. It counts as lost after three more.
_KEEPALIVE_S = 15


class VllmFollower:
    """The processes that compute for a leader.

    Their end, or that of the leader, ends this process. vLLM's own processes would wait for the leader without end.
    """

    def __init__(
        self,
        process: SpawnProcess,
        pids: set[int],
        leader: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        folder: tempfile.TemporaryDirectory[str],
    ) -> None:
        self._process, self._pids, self._leader, self._folder = process, pids, leader, folder
        self._orphans = OrphanWatcher(pids)
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def join(cls, arguments: Mapping[str, Any], folder: tempfile.TemporaryDirectory[str]) -> "VllmFollower":
        """Start the processes and wait until they have joined.

        Args:
            arguments: of vLLM's `AsyncEngineArgs`, with 'node_rank' above 0.
            folder: from which they read the model. Removed at the end.

        Raises:
            FailedPrecondition: reason 'ENGINE_NOT_STARTED', vLLM has ended before.
        """
        context = multiprocessing.get_context("spawn")
        receiver, sender = context.Pipe(duplex=False)
        # A process of its own, since vLLM waits for the leader without end, and a signal must end the wait.
        process = context.Process(target=join_leader, args=(dict(arguments), sender), name="join_leader")
        process.start()
        sender.close()
        try:
            pids = await asyncio.to_thread(_receive, receiver)
            leader = await _connect(arguments)
        except BaseException:
            kill_with_offspring(process_ids)
            await asyncio.to_thread(process.join)
            raise
        return cls(process, pids, leader, folder)

    async def close(self) -> None:
        """End the processes."""
        self._watching.cancel()
        await asyncio.wait([self._watching])
        self._leader[1].close()
        kill_all(self._pids)  # they have nothing to save, and would not end in order without their leader
        await asyncio.to_thread(self._process.join)
        self._orphans.dismiss()
        await asyncio.to_thread(self._folder.cleanup)

    async def _watch(self) -> None:
        reader, _ = self._leader
        with vital("share of the leader's vLLM"):
            while True:
                await asyncio.sleep(_WATCH_S)
                if not self._process.is_alive():
                    raise RuntimeError("vllm has ended")
                if reader.at_eof() or reader.exception() is not None:
                    raise RuntimeError("the leader's vllm has ended")


def _receive(receiver: Connection) -> set[int]:
    try:
        pids: set[int] = receiver.recv()
    except EOFError:
        raise _not_joined() from None
    return pids


async def _connect(arguments: Mapping[str, Any]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the port where the machines met.

    Nothing is sent. The connection ends with the leader's vLLM.
    """
    address = arguments.get("master_addr", MASTER_ADDRESS), arguments.get("master_port", MASTER_PORT)
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        raise _not_joined() from None
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, _KEEPALIVE_S), (socket.TCP_KEEPINTVL, _KEEPALIVE_S)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    return reader, writer


def _not_joined() -> FailedPrecondition:
    return FailedPrecondition("vLLM did not join its leader: see the log of the service.", reason="ENGINE_NOT_STARTED")
