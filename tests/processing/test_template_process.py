"""The process that renders a chat template, when it ends."""

import os
import signal

import pytest

from chassis.errors import Unavailable
from processing.template_process import TemplateProcess


def test_a_killed_process_is_not_blamed_on_the_template() -> None:
    process = TemplateProcess("{{ name }}")
    assert process.render({"name": "a"}) == {"text": "a"}
    assert process._program is not None
    os.kill(process._program.pid, signal.SIGKILL)
    with pytest.raises(Unavailable) as raised:
        process.render({"name": "b"})
    assert (raised.value.reason, raised.value.retry_after_s) == ("TEMPLATE_FAILED", 1)
    assert process.render({"name": "b"}) == {"text": "b"}
