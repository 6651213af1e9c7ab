"""Who is meant by a CancelledError: this task, or a call it waited for."""

import asyncio


def is_asked_to_stop() -> bool:
    """Return whether somebody asked the task that runs now to stop.

    gRPC raises CancelledError also for a call that was cancelled or reset, and then nobody did.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
