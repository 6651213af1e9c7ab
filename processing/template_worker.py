"""Compile and render a chat template in a process with limits.

Run as a program, because a template of 60 bytes can ask for gigabytes or hours. The kernel ends the process when it
takes too much processor time, and its allocations fail when it takes too much memory.

Messages in both directions: a length (4 bytes, big-endian), then JSON. The first has the 'source'. Each further one has
the arguments of `render`. A reply has one key: 'renders_tools' or 'text', else 'invalid', 'refused' or 'failed' with
the reason.
"""

import json
import signal
import struct
import sys
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chassis.own_memory import limit_memory

LENGTH = struct.Struct(">I")
SECONDS = 2.0  # of processor time, to compile or to render
MEMORY_BYTES = 256 * 2**20  # beyond those of the started process
MAX_CHARACTERS = 16 * 2**20  # of a prompt


class _RefusedError(TemplateError):
    """Raised by a template that calls `raise_exception(...)`."""


def main() -> None:
    """Serve one template until the other side closes the pipe."""
    limit_memory(MEMORY_BYTES)
    template: Template | None = None
    while request := _read():
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # the default action of the signal ends the process
        if template is None:
            try:
                template, renders_tools = compile_template(request["source"])
            except TemplateError as error:
                _write({"invalid": str(error)})
            else:
                _write({"renders_tools": renders_tools})
        else:
            _write(_rendered(template, request))
        signal.setitimer(signal.ITIMER_PROF, 0)


def compile_template(source: str) -> tuple[Template, bool]:
    """Return a template, and whether it renders tools.

    Raises:
        TemplateError: the source is no valid template.
    """
    # Released templates expect these block options and loop controls.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, autoescape=False, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json
    renders_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
    return environment.from_string(source), renders_tools


def _rendered(template: Template, arguments: dict[str, Any]) -> dict[str, str]:
    """Return the reply to one conversation."""
    try:
        text = template.render(arguments)
    except _RefusedError as error:
        return {"refused": str(error)}
    except MemoryError:
        raise
    except Exception as error:  # a template runs Python expressions, which can raise anything
        return {"failed": str(error)}
    if len(text) > MAX_CHARACTERS:
        return {"failed": f"its prompt has more than {MAX_CHARACTERS} characters"}
    return {"text": text}


def _refuse(message: str) -> NoReturn:
    raise _RefusedError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    """Write JSON as models were trained with it.

    Jinja's own filter escapes characters for HTML and sorts keys.
    """
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _read() -> dict[str, Any]:
    """Return the next message, empty at the end."""
    head = sys.stdin.buffer.read(LENGTH.size)
    return dict(json.loads(sys.stdin.buffer.read(LENGTH.unpack(head)[0]))) if head else {}


def _write(reply: dict[str, Any]) -> None:
    data = json.dumps(reply).encode()
    sys.stdout.buffer.write(LENGTH.pack(len(data)) + data)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # are for the service, which closes the pipe
        signal.signal(number, signal.SIG_IGN)
    main()
