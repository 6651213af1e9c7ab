"""The benchmark's side of the protocol: one engine's process."""

import json
import os
import select
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Prompts, Recording

_READY_S = 600.0  # a peer may compile its kernels first
_ANSWER_S = 600.0
_LOG_TAIL = 2000  # characters of a log that an error quotes


class EngineFailed(RuntimeError):
    """An engine stopped, timed out or gave a wrong answer."""


class EngineProcess:
    """One engine in its own process, with a log file."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start the process. `wait` waits until it is ready."""
        self.name = name
        self.version = ""  # reported by the engine when it is ready
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **environment},
                process_group=0,  # Ctrl-C reaches only the benchmark, which then closes the engine's input
            )

    def wait(self) -> None:
        """Wait until the engine has loaded its model.

        Raises:
            EngineFailed: it stopped or timed out.
        """
        self.version = self._read(_READY_S)["ready"]

    def complete(self, prompts: Prompts, num_tokens: int) -> Recording:
        """Send all prompts at once and continue each by `num_tokens`.

        Raises:
            EngineFailed: it stopped, timed out, or sent another number of tokens.
        """
        assert self._process.stdin is not None
        request = {"prompts": prompts, "num_tokens": num_tokens}
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("ended") from None
        recording = Recording(**self._read(_ANSWER_S))
        counts = [len(token_ids) for token_ids in recording.token_ids]
        if counts != [num_tokens] * len(prompts):
            raise self._failed(f"answered {len(prompts)} prompts with {counts} tokens instead of {num_tokens} each")
        return recording

    def close(self) -> None:
        """Stop the process and wait for its end."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise self._failed("ended" if ready else f"did not answer within {timeout_s:.0f} s")
        message: dict[str, Any] = json.loads(line)
        return message

    def _failed(self, reason: str) -> EngineFailed:
        tail = self._log.read_text(errors="replace")[-_LOG_TAIL:]
        return EngineFailed(f"{self.name} {reason}. The last lines of {self._log}:\n{tail}")
