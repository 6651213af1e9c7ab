"""Servers that answer questions about images: our stack, and vLLM's OpenAI server.

Both serve the weights of one Hub folder, with the same prompts and greedy decoding.
"""

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmarks.peers.engines import ENGINES, THREADS
from benchmarks.peers.process import EngineFailed
from benchmarks.tools.processes import peak_bytes
from checkpoint.importing import import_folder
from checkpoint.store import ModelStore
from tandem.client import AsyncClient
from tandem.stack import Stack, StackConfig

TAG = "qwen3-vl-random-v1.0.0"
KV_CACHE_GIB = 2  # of each server
CONTEXT_LENGTH = 8192  # of vLLM, which otherwise asks for a cache of the model's whole context
MAX_PIXELS = 1 << 20  # of a resized image: our default
MAX_CALLERS = 8
VLLM = next(kind for kind in ENGINES if kind.name == "vllm")
_READY_S = 900.0
_ANSWER_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer as its client measured it."""

    first_s: float  # time to the first text
    total_s: float
    first_text: str
    prompt_tokens: int
    answer_tokens: int


class VisionServer(Protocol):
    """A running server."""

    name: str

    async def ask(self, question: str, image: bytes | None, max_tokens: int) -> Reply:
        """Answer a question with exactly `max_tokens` tokens."""
        ...

    def peak_bytes(self) -> int:
        """Return the peak memory of all its processes together."""
        ...


class TandemServer:
    """Our three services."""

    name = "tandem"

    def __init__(self, stack: Stack, client: AsyncClient) -> None:
        self._stack, self._client = stack, client

    async def ask(self, question: str, image: bytes | None, max_tokens: int) -> Reply:
        """Answer a question with exactly `max_tokens` tokens."""
        images = () if image is None else (image,)
        start_s = time.perf_counter()
        stream = self._client.generate(
            question, images=images, max_tokens=max_tokens, temperature=0.0, ignore_eos=True, timeout_s=_ANSWER_S
        )
        times, texts = [], []
        async for text in stream:
            times.append(time.perf_counter() - start_s)
            texts.append(text)
        usage = stream.final.usage
        total_s = time.perf_counter() - start_s
        return Reply(
            first_s=times[0] if times else total_s,
            total_s=total_s,
            first_text=texts[0] if texts else "",
            prompt_tokens=usage.prompt_tokens,
            answer_tokens=usage.completion_tokens,
        )

    def peak_bytes(self) -> int:
        """Return the peak memory of all its processes together."""
        return sum(map(peak_bytes, self._stack.pids.values()))


@asynccontextmanager
async def running_tandem(hub: Path, models: Path) -> AsyncIterator[TandemServer]:
    """Import the folder if needed, and run our stack."""
    if TAG not in ModelStore(models).tags():
        import_folder(hub, models, TAG)
    config = StackConfig(
        models=models,
        release=TAG,
        precision="bfloat16",
        threads=THREADS,
        vision_flags=("--max-resized-pixels", str(MAX_PIXELS)),
        # Several large images take longer than a prompt may take by default.
        language_flags=("--kv-cache-bytes", str(KV_CACHE_GIB << 30), "--segment-timeout-s", f"{_ANSWER_S:g}"),
    )
    with Stack(config) as stack:
        async with AsyncClient(stack.address) as client:
            yield TandemServer(stack, client)


class VllmServer:
    """vLLM's OpenAI server."""

    name = "vllm"

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process, self._address = process, f"http://127.0.0.1:{port}"
        self._threads = ThreadPoolExecutor(2 * MAX_CALLERS)  # one for each request in flight

    async def ask(self, question: str, image: bytes | None, max_tokens: int) -> Reply:
        """Answer a question with exactly `max_tokens` tokens."""
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        start_s = time.perf_counter()
        if image is not None:
            url = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
            content.insert(0, {"type": "image_url", "image_url": {"url": url}})
        body = {
            "model": TAG,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, json.dumps(body).encode(), start_s)

    def _read(self, body: bytes, start_s: float) -> Reply:
        request = urllib.request.Request(
            f"{self._address}/v1/chat/completions", body, {"Content-Type": "application/json"}
        )
        first_s, first_text = None, ""
        usage: dict[str, int] = {}
        with urllib.request.urlopen(request, timeout=_ANSWER_S) as response:
            for line in response:
                if not line.startswith(b"data: {"):
                    continue
                chunk = json.loads(line.removeprefix(b"data: "))
                usage = chunk.get("usage") or usage
                text = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if text and first_s is None:
                    first_s, first_text = time.perf_counter() - start_s, text
        total_s = time.perf_counter() - start_s
        return Reply(
            first_s=total_s if first_s is None else first_s,
            total_s=total_s,
            first_text=first_text,
            prompt_tokens=usage["prompt_tokens"],
            answer_tokens=usage["completion_tokens"],
        )

    def wait(self, log: Path) -> None:
        """Wait until it serves.

        Raises:
            EngineFailed: it stopped or timed out.
        """
        end_s = time.monotonic() + _READY_S
        while time.monotonic() < end_s and self._process.poll() is None:
            try:
                urllib.request.urlopen(f"{self._address}/health", timeout=5).close()
            except OSError:
                time.sleep(0.5)
            else:
                return
        raise EngineFailed(f"vLLM's server did not start. The last lines of {log}:\n{log.read_text()[-2000:]}")

    def peak_bytes(self) -> int:
        """Return the peak memory of all its processes together."""
        return sum(map(peak_bytes, _group(self._process.pid)))


@contextmanager
def running_vllm(hub: Path, log: Path) -> Iterator[VllmServer]:
    """Run vLLM's server on the folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flags = {
        "model": hub,
        "served-model-name": TAG,
        "port": port,
        "dtype": "bfloat16",
        "max-model-len": CONTEXT_LENGTH,
        "max-num-seqs": MAX_CALLERS + 1,
        "mm-processor-kwargs": json.dumps({"size": {"shortest_edge": 1 << 16, "longest_edge": MAX_PIXELS}}),
    }
    command = [VLLM.python, "-m", "vllm.entrypoints.openai.api_server", "--skip-mm-profiling"]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    variables = {
        **os.environ,
        **VLLM.variables(),
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # as its server has it by default
    }
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=variables,
            process_group=0,
        )
    try:
        server = VllmServer(process, port)
        server.wait(log)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _group(leader: int) -> list[int]:
    """Return the processes of a process group."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
    members = []
    for pid in pids:
        try:
            if os.getpgid(pid) == leader:
                members.append(pid)
        except ProcessLookupError:
            continue
    return members
