"""Start and kill worker processes, and report their stops and ends.

A program runs this for the service that is its parent. Each worker is a copy of the program, so it starts in a
millisecond, and has loaded what the program has. It starts stopped, and the service lets it go on.

Messages of the service to the program, over a socket: `COMMAND`, with the worker's end of a connection for 'o'.
Messages of the program: `EVENT`.
"""

import ctypes
import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from chassis.process_time import yield_processors

COMMAND = struct.Struct("<cI")  # 'o' opens a worker, and 'k' kills it. Then its number.
# 's' for a worker that is stopped, first at its start, and 'e' for one that has ended. Then its number, and its process
# id or, once it has ended, its wait status.
EVENT = struct.Struct("<cIi")
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG


class ProcessStarter:
    """Starts and kills workers, and reports their ends."""

    def __init__(self, control: socket.socket, serve: Callable[[int], None]) -> None:
        """Read commands from the parent process.

        Args:
            control: a socket that keeps messages apart.
            serve: runs in each worker, with the descriptor of its end of a connection.
        """
        self._control, self._serve = control, serve
        self._own_id, self._prctl = os.getpid(), ctypes.CDLL(None).prctl
        self._process_ids: dict[int, int] = {}  # of each worker whose end was not read, so no other process can have it
        # The end or stop of a worker wakes the loop. A handler could interrupt itself.
        self._changed, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Run commands until the parent closes the socket."""
        while True:
            ready, _, _ = select.select([self._control, self._changed], [], [])
            if self._changed in ready:
                self._changed.recv(4096)
                self._report_changes()
            if self._control in ready and not self._run_command():
                break
        for process_id in self._process_ids.values():
            os.kill(process_id, signal.SIGKILL)

    def _run_command(self) -> bool:
        """Run one command. Returns False after the last one."""
        message, sockets, _, _ = socket.recv_fds(self._control, COMMAND.size, 1)
        if not message:
            return False
        command, number = COMMAND.unpack(message)
        if command == b"o":
            self._start(number, sockets[0])
        elif process_id := self._process_ids.get(number):
            _kill(process_id)
        return True

    def _start(self, number: int, connection: int) -> None:
        process_id = os.fork()
        if process_id == 0:
            try:
                self._prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)  # a stopped process could not see the program's end
                if os.getppid() == self._own_id:
                    os.kill(os.getpid(), signal.SIGSTOP)  # before it takes a processor from the service for long
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (self._control, self._changed, self._wakeup):
                    other.close()
                self._serve(connection)
            finally:
                os._exit(1)
        os.close(connection)
        self._process_ids[number] = process_id

    def _report_changes(self) -> None:
        for number, process_id in list(self._process_ids.items()):
            changed, status = os.waitpid(process_id, os.WNOHANG | os.WUNTRACED)
            if changed and os.WIFSTOPPED(status):
                self._report(b"s", number, process_id)
            elif changed:
                del self._process_ids[number]
                self._report(b"e", number, status)

    def _report(self, kind: bytes, number: int, detail: int) -> None:
        with suppress(OSError):  # the service has closed the socket, which `run` notices
            self._control.send(EVENT.pack(kind, number, detail))


def _kill(process_id: int) -> None:
    """Kill a worker.

    It gives its memory back on idle processors, because that can take milliseconds.
    """
    with suppress(OSError):  # it has just ended
        for thread in os.listdir(f"/proc/{process_id}/task"):
            yield_processors(int(thread))
    os.kill(process_id, signal.SIGKILL)
