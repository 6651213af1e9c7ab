"""The list of checks. Needs the standard library only."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from chassis.extras import MODULES

_ENGINE = ("torch", "numpy", "pydantic", "structlog", "prometheus_client", "grpc", "google.protobuf", "llguidance")
_STACK = (*_ENGINE, *MODULES["stages"], *MODULES["gateway"], "grpc_status")
_TESTS = (*_STACK, "pytest", "pytest_asyncio", "pytest_timeout", "hypothesis", "uvloop", "typer", "rich")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check, which runs in a process of its own.

    Its module has a function `run(sizes, rows)`.
    """

    name: str
    about: str  # for people
    module: str
    packages: Sequence[str]  # that must be importable
    seconds: float  # seen on one H200, with the start of the process and of CUDA
    limit_s: float  # after which it is killed


_CHECKS = "benchmarks.gpu_check.checks"

# In the order of their run: those that judge the others' figures first, the longest last.
CHECKS = (
    Check(
        name="machine",
        about="card, versions, memory bandwidth, matrix peak",
        module=f"{_CHECKS}.machine",
        packages=("torch",),
        seconds=6,
        limit_s=30,
    ),
    Check(
        name="decoder",
        about="logits, greedy tokens, preemption, prefix reuse and CUDA graphs, against float32 on the CPU",
        module=f"{_CHECKS}.decoder",
        packages=_ENGINE,
        seconds=29,
        limit_s=75,
    ),
    Check(
        name="tests",
        about="tests marked `gpu`",
        module=f"{_CHECKS}.marked_tests",
        packages=_TESTS,
        seconds=50,
        limit_s=90,
    ),
    Check(
        name="attention",
        about="each attention kernel at hand: error, time, share of the memory bandwidth",
        module=f"{_CHECKS}.attention",
        packages=_ENGINE,
        seconds=39,
        limit_s=90,
    ),
    Check(
        name="decode",
        about="decode and prefill of the 0.6 B and the 8 B shape, beside bandwidth and matrix peak",
        module=f"{_CHECKS}.decode_speed",
        packages=_ENGINE,
        seconds=30,
        limit_s=75,
    ),
    Check(
        name="vision",
        about="images a second of each vision backend, beside the matrix peak",
        module=f"{_CHECKS}.vision",
        packages=_STACK,
        seconds=60,
        limit_s=170,
    ),
    Check(
        name="low_bit",
        about="decoders with 8 or 4 bits a weight: logits against the CPU, time of a step",
        module=f"{_CHECKS}.low_bit",
        packages=_ENGINE,
        seconds=15,
        limit_s=40,
    ),
    Check(
        name="first_token",
        about="first token of questions with an image, 16 callers, the full-size model",
        module=f"{_CHECKS}.first_token",
        packages=_STACK,
        seconds=100,
        limit_s=180,
    ),
)


def missing_packages(check: Check) -> list[str]:
    """Return the packages of a check that cannot be found."""
    return [name for name in dict.fromkeys(check.packages) if not _is_installed(name)]


def import_problem(check: Check) -> str:
    """Import a check. Returns the problem, or an empty text."""
    try:
        run = import_module(check.module).run
    except Exception as error:  # an import can fail in any way
        return f"{type(error).__name__}: {error}"
    return "" if callable(run) else "it has no function `run`"


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False
