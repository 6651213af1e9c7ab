"""Make senders of oversized messages wait for their next one.

gRPC receives a message whole before anybody knows its size. A stranger who sends 30 MiB as a health check holds up the
event loop for tens of milliseconds, while they are copied and freed. So the sender then waits. Others do not.

Behind a proxy, strangers share its address. A connection that has sent messages of a good size, such as the proxy's own
health checks, does not wait for the others of its address.
"""

import asyncio
from collections import OrderedDict

from chassis.sender import Sender

PAUSE_S = 5.0  # after each oversized message
LONGEST_PAUSE_S = 60.0
_MAX_GOOD = 4096  # connections that are remembered
_TOLERANCE_S = 0.05  # a timer may end early by the resolution of its clock


class Pauses:
    """Pauses of the senders of one server.

    For one event loop.
    """

    def __init__(self) -> None:
        self._ends_s: dict[str, float] = {}  # by owner
        self._good: OrderedDict[str, None] = OrderedDict()  # connections, the one that was used last at the end

    def holds(self, sender: Sender) -> bool:
        """Return whether a sender must wait."""
        return sender.owner in self._ends_s and sender.connection not in self._good

    def begin(self, sender: Sender) -> float:
        """Pause the sender of an oversized message.

        Pauses of one address add up.

        Returns:
            seconds until its end, when `end` must be called.
        """
        now_s = asyncio.get_running_loop().time()
        self._good.pop(sender.connection, None)
        ends_s = min(max(self._ends_s.get(sender.owner, 0), now_s) + PAUSE_S, now_s + LONGEST_PAUSE_S)
        self._ends_s[sender.owner] = ends_s
        return ends_s - now_s

    def end(self, owner: str) -> None:
        """End a pause, unless it has grown longer."""
        if self._ends_s.get(owner, 0) <= asyncio.get_running_loop().time() + _TOLERANCE_S:
            self._ends_s.pop(owner, None)

    def accept(self, sender: Sender) -> None:
        """Remember the connection of a message of a good size."""
        self._good[sender.connection] = None
        self._good.move_to_end(sender.connection)
        if len(self._good) > _MAX_GOOD:
            self._good.popitem(last=False)
