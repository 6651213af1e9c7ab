"""Read the small files of a checkpoint, which may be hostile."""

from pathlib import Path

from chassis.errors import FailedPrecondition

_MIB = 2**20
# Far above those of every released model. Others, such as probes, have limits of their own.
_MAX_BYTES = {
    "manifest.json": 4 * _MIB,
    "config.json": _MIB,
    "chat_template.jinja": _MIB,
    "tokenizer.json": 128 * _MIB,
}
_MAX_OTHER_BYTES = 256 * _MIB


def read_small_file(path: Path) -> bytes:
    """Return the content of a file of limited size.

    Raises:
        OSError: it cannot be read.
        FailedPrecondition: reason 'BAD_CHECKPOINT', it is too large.
    """
    limit = _MAX_BYTES.get(path.name, _MAX_OTHER_BYTES)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise FailedPrecondition(
            f"The file {path.name} of {path.parent.name} is larger than {limit} bytes.", reason="BAD_CHECKPOINT"
        )
    return content
