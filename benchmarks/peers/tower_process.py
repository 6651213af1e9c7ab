"""vLLM's vision tower in a process of its own, see `vllm_tower`."""

import os
import subprocess
from pathlib import Path
from typing import Self

from benchmarks.peers.process import EngineFailed
from benchmarks.peers.vision_servers import VLLM


class TowerProcess:
    """The process, as a context manager."""

    def __init__(self, hub: Path, log: Path) -> None:
        self._hub, self._log = hub, log

    def __enter__(self) -> Self:
        command = [VLLM.python, "-m", "benchmarks.peers.vllm_tower", str(self._hub)]
        variables = {**os.environ, **VLLM.variables(), "VLLM_CPU_KVCACHE_SPACE": "1"}
        with self._log.open("wb") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=variables, process_group=0
            )
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def encode(self, size: tuple[int, int]) -> float:
        """Encode a random image and return the seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{size[0]} {size[1]}\n".encode())
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        """Return the next line.

        Raises:
            EngineFailed: the process stopped.
        """
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            tail = self._log.read_text(errors="replace")[-2000:]
            raise EngineFailed(f"vLLM stopped. The last lines of {self._log}:\n{tail}")
        return line.decode().strip()
