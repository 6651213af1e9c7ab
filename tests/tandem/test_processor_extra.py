"""The plain install names the extra of the processor."""

from tests.tandem.test_install import NAME, missing_modules, run_without


def test_the_processor_without_its_extra_says_what_to_install() -> None:
    """Importing its name still works, so that `help(tandem)` does."""
    program = """
from tandem import *
try:
    Processor.from_pretrained("tiny-v1.0.0")
except errors.FailedPrecondition as error:
    print(error.reason, error)
"""
    done = run_without(missing_modules(""), program)
    sentence = f"tandem.Processor needs the extra processor: pip install '{NAME}[processor]'."
    assert (done.stdout, done.stderr) == (f"NOT_INSTALLED {sentence}\n", "")
