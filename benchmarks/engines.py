"""Both language engines behind the same service.

    make vllm-env                        # once: installs vLLM under .peers/
    python -m benchmarks.engines         # about ten minutes on two cores
    python -m benchmarks.engines --quick # the whole stack only, in about a minute

First, two language services decode the same weights over gRPC: Qwen3 0.6B's shape, random, in bfloat16. Then two whole
stacks with the demo model answer questions with and without images. The engines take turns in every round, and have two
threads each. Memory is that of all processes of a service, after its rounds.
"""

import asyncio
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.latency import KINDS, run_round
from benchmarks.peers.checkpoints import TAG, make_checkpoints
from benchmarks.peers.engines import CACHE_BYTES, ENGINES, THREADS
from benchmarks.peers.tandem_grpc import complete_all, connect
from benchmarks.peers.workloads import BATCHES, Sample, random_prompts
from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.processes import address_of, group_bytes, running
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from tandem.client import AsyncClient
from tandem.stack import Stack, StackConfig
from tandem.v1 import language_pb2_grpc

TANDEM, VLLM = "tandem", "vllm"
_VLLM = next(kind for kind in ENGINES if kind.name == VLLM)
WORKLOADS = BATCHES[:3]
ALONE = 40  # prompts of 128 tokens one after the other, for the first token without load
DEMO_CACHE_BYTES = 1 << 28


@dataclass(slots=True)
class Measured:
    """One engine's figures. Lists have an entry a round."""

    rates: dict[str, list[float]] = field(default_factory=dict)  # tokens/s while all sequences decode, by workload
    first_token_s: dict[str, list[float]] = field(default_factory=dict)  # of each sequence, by workload or kind
    first_token_ids: dict[str, list[int]] = field(default_factory=dict)
    num_bytes: int = 0


@contextmanager
def _environment(engine: str) -> Iterator[None]:
    """Start processes with the variables of an engine."""
    before = dict(os.environ)
    if engine == VLLM:
        os.environ |= _VLLM.variables() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _python(engine: str) -> str:
    return _VLLM.python if engine == VLLM else sys.executable


def _flags(engine: str, cache_bytes: int, *, compiles: bool = True) -> list[str]:
    flags = ["--engine", engine, "--threads", str(THREADS), "--kv-cache-bytes", str(cache_bytes)]
    return flags if engine == TANDEM or compiles else [*flags, "--engine-args", '{"enforce_eager": true}']


async def decode(engines: Sequence[str], checkpoints: Path, rounds: int) -> dict[str, Measured]:
    """Measure two language services with the larger model."""
    measured = {engine: Measured() for engine in engines}
    async with AsyncExitStack() as stack:
        stubs = {}
        pids = {}
        for engine in engines:
            flags = ["--models", str(checkpoints / "tandem"), "--tags", TAG, *_flags(engine, CACHE_BYTES)]
            with _environment(engine):
                service = stack.enter_context(running("language_service", flags, python=_python(engine)))
            channel = await stack.enter_async_context(await connect(address_of(service)))
            stubs[engine], pids[engine] = language_pb2_grpc.LanguageServiceStub(channel), service.pid
        with Progress() as progress:
            # Round 0 is the warm-up.
            for number in progress.track(range(rounds + 1), description="decoding"):
                for workload in WORKLOADS:
                    for engine in engines[:: -1 if number % 2 else 1]:
                        prompts = workload.prompts(number)
                        recording = await complete_all(stubs[engine], prompts, workload.num_tokens)
                        if number:
                            _add(measured[engine], workload.name, Sample.of(recording), recording.token_s)
            for number in progress.track(range(ALONE), description="first token"):
                for engine in engines[:: -1 if number % 2 else 1]:
                    prompts = random_prompts(1, WORKLOADS[0].prompt_length, (number, 11))
                    recording = await complete_all(stubs[engine], prompts, 1)
                    measured[engine].first_token_s.setdefault("alone", []).append(recording.token_s[0][0])
        for engine in engines:
            measured[engine].num_bytes = group_bytes(pids[engine])
    return measured


def _add(measured: Measured, name: str, sample: Sample, token_s: Sequence[Sequence[float]]) -> None:
    if sample.decode_rate is not None:
        measured.rates.setdefault(name, []).append(sample.decode_rate)
    measured.first_token_s.setdefault(name, []).extend(times[0] for times in token_s)
    measured.first_token_ids.setdefault(name, []).extend(sample.first_token_ids)


async def ask(addresses: dict[str, str], rounds: int, streams: Sequence[int]) -> dict[str, Measured]:
    """Measure two whole stacks with the demo model."""
    measured = {engine: Measured() for engine in addresses}
    async with AsyncExitStack() as stack:
        clients = {
            engine: await stack.enter_async_context(AsyncClient(address)) for engine, address in addresses.items()
        }
        cases = [(kind, count) for count in streams for kind in KINDS]
        with Progress() as progress:
            for number in progress.track(range(rounds + 1), description="asking"):
                for kind, count in cases:
                    for engine in list(addresses)[:: -1 if number % 2 else 1]:
                        one = await run_round(clients[engine], kind, count, seed=1 + number * 100 + count)
                        if number:
                            name = f"{kind}, {count} streams"
                            measured[engine].first_token_s.setdefault(name, []).extend(one.first_token_s)
                            measured[engine].rates.setdefault(name, []).append(one.tokens_per_s)
    return measured


def ask_stacks(engines: Sequence[str], models: Path, release: str, *, quick: bool) -> dict[str, Measured]:
    """Run one stack an engine, and measure them."""
    with ExitStack() as stack:
        addresses = {}
        for engine in engines:
            config = StackConfig(
                models=models,
                release=release,
                threads=THREADS,
                language_flags=_flags(engine, DEMO_CACHE_BYTES, compiles=not quick),
                language_python=_python(engine),
            )
            with _environment(engine):
                addresses[engine] = stack.enter_context(Stack(config)).address
        return asyncio.run(ask(addresses, 3 if quick else 10, (1, 8) if quick else (1, 8, 32)))


def fill(report: Report, measured: dict[str, Measured], prefix: str) -> None:
    """Add the figures of one model, and the engines' ratio."""
    names = dict.fromkeys(name for one in measured.values() for name in one.first_token_s)
    for name in names:
        for engine, one in measured.items():
            first_ms = 1000 * np.asarray(one.first_token_s[name])
            title = f"{prefix}, {name}, {engine}"
            if rates := one.rates.get(name):
                report.add(f"{title}: throughput", statistics.median(rates), "tokens/s")
            report.add(f"{title}: time to first token p50", float(np.median(first_ms)), "ms")
            report.add(f"{title}: time to first token p99", float(np.percentile(first_ms, 99)), "ms")
        if len(measured) == 2 and name in measured[TANDEM].rates:
            ours, theirs = (measured[engine].rates[name] for engine in (TANDEM, VLLM))
            report.add(f"{prefix}, {name}: throughput, tandem / vllm", median_ratio(ours, theirs), "")
    for engine, one in measured.items():
        if one.num_bytes:
            report.add(f"{prefix}, {engine}: memory of the service", one.num_bytes / 1e9, "GB")


def agreement(measured: dict[str, Measured]) -> float:
    """Return how many first tokens both engines chose alike, percent."""
    both = [[token for ids in one.first_token_ids.values() for token in ids] for one in measured.values()]
    return 100 * statistics.fmean(ours == theirs for ours, theirs in zip(*both, strict=True))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Compare both language engines behind the same service.",
        arguments,
        checkpoints={"type": Path, "default": Path(".tandem/decode"), "help": "folder for the larger model, 1.2 GB"},
        **RELEASE_OPTIONS,
    )
    engines = [TANDEM, VLLM] if _VLLM.installed else [TANDEM]
    report = Report("engines", "Both language engines behind the same service")
    report.details["engines"] = engines if len(engines) == 2 else "vLLM is not installed: make vllm-env"
    decoded: dict[str, Measured] = {}
    if not options.quick:
        options.checkpoints.mkdir(parents=True, exist_ok=True)
        make_checkpoints(options.checkpoints, with_peers=False)
        decoded = asyncio.run(decode(engines, options.checkpoints.absolute(), rounds=5))
        fill(report, decoded, "0.6B")
        if len(engines) == 2:
            report.add("0.6B: equal first tokens", agreement(decoded), "%")
    asked = ask_stacks(engines, options.models, chosen_release(options), quick=options.quick)
    fill(report, asked, "demo stack")

    def plot(axes: Axes) -> None:
        shown = decoded or asked
        names = list(next(iter(shown.values())).rates)
        for engine, one in shown.items():
            axes.plot(names, [statistics.median(one.rates[name]) for name in names], marker="o", label=engine)
        axes.set(ylabel="tokens/s", yscale="log")
        axes.tick_params(axis="x", labelrotation=20)
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
