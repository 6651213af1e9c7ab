"""The benchmark's side of the protocol: an engine's process, asked and answered."""

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
    """An engine ended, or does not answer."""


class EngineProcess:
    """One engine in a process of its own. Everything it prints goes to a log beside the checkpoints."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it; `wait` tells when it has loaded."""
        self.name = name
        self.version = ""  # what it says it is, once it has loaded
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **environment},
                process_group=0,  # a Ctrl-C is the benchmark's: closing the input ends the engine
            )

    def wait(self) -> None:
        """Wait until it has loaded.

        Raises:
            EngineFailed: it ended, or took too long.
        """
        self.version = self._read(_READY_S)["ready"]

    def complete(self, prompts: Prompts, num_tokens: int) -> Recording:
        """Continue `prompts`, handed over at once, by `num_tokens` each.

        Raises:
            EngineFailed: it ended, took too long, or sent another number of tokens.
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
        """End it and wait until it is gone."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise self._failed("ended" if ready else f"did not answer within {timeout_s:.0f} s")
        message: dict[str, Any] = json.loads(line)
        return message

    def _failed(self, what: str) -> EngineFailed:
        tail = self._log.read_text(errors="replace")[-_LOG_TAIL:]
        return EngineFailed(f"{self.name} {what}; the end of {self._log}:\n{tail}")
