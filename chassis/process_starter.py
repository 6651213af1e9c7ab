"""Start worker processes, let them take turns, and kill them.

A program runs this for the service that is its parent. Each worker is a copy of the program, so it starts in a
millisecond, and has loaded what the program has.

Messages of the service to the program, over a socket: `COMMAND`, with the worker's end of a connection for 'o'.
Messages of the program: `STARTED_OR_ENDED`.
"""

import os
import select
import signal
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

from chassis.process_turns import ProcessTurns, wake_promptly

# A letter, then the number of a worker: 'o' opens it, 'k' kills it, 't' starts its turns, and 'e' ends them.
COMMAND = struct.Struct("<cI")
STARTED_OR_ENDED = struct.Struct("<cIi")  # 's' and 'e'. Then its number, and its process id or wait status.


class ProcessStarter:
    """Starts and kills workers, and reports their ends."""

    def __init__(self, control: socket.socket, serve: Callable[[int], None]) -> None:
        """Read commands from the parent process.

        Args:
            control: a socket that keeps messages apart.
            serve: runs in each worker, with the descriptor of its end of a connection.
        """
        self._control, self._serve = control, serve
        self._turns = ProcessTurns(os.getppid())
        self._process_ids: dict[int, int] = {}  # of each worker whose end was not read, so no other process can have it
        # The end of a worker wakes the loop. A handler could interrupt itself.
        self._ended, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)

    def run(self) -> None:
        """Run commands until the parent closes the socket."""
        wake_promptly()  # a late end of a turn delays the service
        while True:
            ready, _, _ = select.select([self._control, self._ended], [], [], self._turns.next())
            if self._ended in ready:
                self._ended.recv(4096)
                self._report_ends()
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
            if command == b"t":
                self._turns.add(process_id)
            elif command == b"e":
                self._turns.remove(process_id)
            else:
                os.kill(process_id, signal.SIGKILL)
        return True

    def _start(self, number: int, connection: int) -> None:
        process_id = os.fork()
        if process_id == 0:
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for other in (self._control, self._ended, self._wakeup):
                    other.close()
                self._serve(connection)
            finally:
                os._exit(1)
        os.close(connection)
        self._process_ids[number] = process_id
        self._report(b"s", number, process_id)

    def _report_ends(self) -> None:
        for number, process_id in list(self._process_ids.items()):
            ended, status = os.waitpid(process_id, os.WNOHANG)
            if ended:
                del self._process_ids[number]
                self._turns.remove(process_id)
                self._report(b"e", number, status)

    def _report(self, kind: bytes, number: int, detail: int) -> None:
        with suppress(OSError):  # the service has closed the socket, which `run` notices
            self._control.send(STARTED_OR_ENDED.pack(kind, number, detail))
