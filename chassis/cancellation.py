"""Tell cancellation of this task from cancellation of an awaited RPC."""

import asyncio


def is_asked_to_stop() -> bool:
    """Return whether the current task itself was cancelled.

    gRPC raises CancelledError also when an RPC that the task awaits is cancelled or reset.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
