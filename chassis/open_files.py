"""Make room for connections below the limit of open files."""

import resource

_OTHER_FILES = 256  # besides connections: libraries, logs, models and channels to other services


def allow_connections(num_connections: int) -> int:
    """Raise the limit of open files for connections.

    The usual limit is 1024. At the limit, a server accepts nobody, so idle clients could keep all others out.

    Args:
        num_connections: wanted.

    Returns:
        How many fit: at most `num_connections`, at least 1.
    """
    wanted = num_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return num_connections
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(num_connections, soft - _OTHER_FILES))
