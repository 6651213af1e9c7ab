"""Hand on `Processor`, or a class that names its extra."""

from typing import TYPE_CHECKING, NoReturn

from chassis.extras import are_installed
from tandem.errors import FailedPrecondition

if TYPE_CHECKING or are_installed("processor"):
    from processing import Processor
else:

    class Processor:
        """Stands in for the processor, whose packages are missing."""

        def __init__(self, *arguments: object, **options: object) -> None:
            _refuse()

        @classmethod
        def from_pretrained(cls, *arguments: object, **options: object) -> NoReturn:
            """Raise an error that names the extra."""
            _refuse()


def _refuse() -> NoReturn:
    raise FailedPrecondition(
        "tandem.Processor needs the extra processor: pip install 'tandem-serving[processor]'.", reason="NOT_INSTALLED"
    )


__all__ = ["Processor"]
