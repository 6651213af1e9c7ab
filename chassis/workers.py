"""Run several processes of one service behind one address.

The supervisor starts workers, which all listen on its port, and the kernel gives each new connection to one of them
(SO_REUSEPORT). It starts a worker again that ends or hangs, after a pause. It passes SIGTERM on, and ends when all
workers have drained. A worker drains if its supervisor dies.
"""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import structlog

from chassis.errors import FailedPrecondition
from chassis.listening import reserved_address
from chassis.process import ProcessLife, run_process
from chassis.settings import ServiceSettings

HANG_S = 30.0  # a worker whose event loop does not turn for so long is killed
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # before a worker starts again. Doubles each time
_CALM_S = 60.0  # a worker that served for so long starts again after the first pause

_log = structlog.get_logger()

# Returns the flags of a worker from its index and the flags of the addresses that all workers share.
FlagsOf = Callable[[int, Sequence[str]], Sequence[str]]


def run_workers(
    name: str, settings: ServiceSettings, module: str, num_workers: int, flags_of: FlagsOf, *, hang_s: float = HANG_S
) -> None:
    """Supervise workers until SIGTERM or Ctrl-C, then let them drain.

    A second signal ends the calls in flight, as in `chassis.server.run_service`.

    Args:
        name: name of the process in its log.
        settings: of the service.
        module: `python -m MODULE DESCRIPTOR FLAGS...` is a worker. It calls `run_service` with a `WorkerLink`.
        num_workers: how many.
        flags_of: the flags of each.
        hang_s: time after which a worker that gives no sign of life is killed, seconds.

    Raises:
        SystemExit: status 1, a worker could not start, or one did not end well. The log says why.
    """

    async def supervise(life: ProcessLife) -> None:
        with ExitStack() as stack:
            addresses = ["--listen", stack.enter_context(reserved_address(settings.listen))]
            if settings.probe_listen is not None:
                probes = reserved_address(settings.probe_listen, service="probes")
                addresses += ["--probe-listen", stack.enter_context(probes)]
            workers = [
                _Worker(index, [sys.executable, "-m", module], flags_of(index, addresses), hang_s)
                for index in range(num_workers)
            ]
            await _Supervisor(workers).run(life)

    run_process(name, settings, supervise)


class _Worker:
    """One worker, which is started again whenever it ends."""

    def __init__(self, index: int, program: Sequence[str], flags: Sequence[str], hang_s: float) -> None:
        self.first_ready: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.has_failed = False  # whether it ended with an error while it was asked to stop
        self._index = index
        self._program = program
        self._flags = flags
        self._hang_s = hang_s
        self._process: subprocess.Popen[bytes] | None = None
        self._ready_at_s: float | None = None  # None until the process serves
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Keep the worker running until `stop`.

        Raises:
            FailedPrecondition: reason 'WORKER_FAILED', its first process ended before it was ready.
        """
        pause_s = _FIRST_PAUSE_S
        while True:
            code = await self._run_once()
            if self._stopping.is_set():
                self.has_failed = code != 0 and self._ready_at_s is not None
                return
            if not self.first_ready.done():
                raise FailedPrecondition("A worker cannot start, its log line says why.", reason="WORKER_FAILED")
            if self._ready_at_s is not None and time.monotonic() - self._ready_at_s > _CALM_S:
                pause_s = _FIRST_PAUSE_S
            _log.error("worker ended, starting another", worker=self._index, exit_code=code, pause_s=pause_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stopping.wait()
                return
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def stop(self) -> None:
        """Ask the process to drain, the second time to stop."""
        self._stopping.set()
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)  # does nothing after its end

    async def _run_once(self) -> int:
        """Run one process and return its exit code."""
        self._ready_at_s = None
        process, link = self._start()
        self._process = process
        with ExitStack() as stack:  # left after the end of the process, which would miss its supervisor
            stack.callback(link.close)
            try:
                reader, writer = await asyncio.open_unix_connection(sock=link)
                stack.callback(writer.close)
                await self._follow(process, reader)
            except asyncio.CancelledError:
                process.terminate()
                raise
            finally:
                # After its end of the socket, only the end of its interpreter is left, which the worker limits itself.
                code = await asyncio.shield(asyncio.to_thread(process.wait))
        return code

    def _start(self) -> tuple["subprocess.Popen[bytes]", socket.socket]:
        """Start a process, and return it with its link."""
        own, inherited = socket.socketpair()
        own.setblocking(False)
        with inherited:
            descriptor = inherited.fileno()
            process = subprocess.Popen(
                [*self._program, str(descriptor), *self._flags],
                stdin=subprocess.DEVNULL,
                pass_fds=(descriptor,),
                process_group=0,  # Ctrl-C reaches only the supervisor, which stops the workers once
            )
        return process, own

    async def _follow(self, process: "subprocess.Popen[bytes]", reader: asyncio.StreamReader) -> None:
        """Follow the worker until it ends, or kill it."""
        while True:
            try:
                async with asyncio.timeout(None if self._ready_at_s is None else self._hang_s):
                    line = await reader.readline()
            except TimeoutError:
                _log.error("worker hangs, killing it", worker=self._index, pid=process.pid, seconds=self._hang_s)
                process.kill()
                return
            if not line:
                return
            if line.strip():
                self._ready_at_s = time.monotonic()
                if not self.first_ready.done():
                    self.first_ready.set_result(json.loads(line))


class _Supervisor:
    """Starts all workers, and stops them together."""

    def __init__(self, workers: Sequence[_Worker]) -> None:
        self._workers = workers

    async def run(self, life: ProcessLife) -> None:
        """Supervise until the drain has ended.

        Raises:
            FailedPrecondition: reason 'WORKER_FAILED', a worker cannot start.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(worker.run()) for worker in self._workers]
                ready = [await worker.first_ready for worker in self._workers]
                ports = [fields.pop("metrics_port", -1) for fields in ready]
                life.announce_ready(**ready[0], metrics_port=ports[0], metrics_ports=ports, workers=len(ports))
                stopping = tasks.create_task(self._stop(life))
                await asyncio.wait(running)
                stopping.cancel()
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        life.has_failed |= any(worker.has_failed for worker in self._workers)

    async def _stop(self, life: ProcessLife) -> None:
        for signal_received in (life.drain, life.stop_now):
            await signal_received.wait()
            for worker in self._workers:
                worker.stop()
