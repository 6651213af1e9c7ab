"""Describe this machine for the results of a benchmark."""

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_LISTING = Path("/proc/cpuinfo")
# AMD's generations by family, then by the first of a range of models. Virtual machines often hide the model's name.
_AMD_GENERATIONS = {
    23: {0x00: "Zen", 0x30: "Zen 2", 0x50: "Zen", 0x60: "Zen 2"},
    25: {0x00: "Zen 3", 0x10: "Zen 4", 0x20: "Zen 3", 0x60: "Zen 4"},
    26: {0x00: "Zen 5", 0x50: "Zen 6", 0x60: "Zen 5", 0x80: "Zen 6"},
}
# The sets of the compiled kernels, the fastest first, and the flags that Linux lists for each.
_SETS = {
    "amx": {"amx_tile", "amx_bf16", "amx_int8"},
    "avx512bf16": {"avx512_bf16"},
    "avx512": {"avx512f"},
    "avx2": {"avx2", "fma"},
    "neonbf16": {"asimd", "asimddp", "bf16", "i8mm"},
    "neon": {"asimd"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine of a run. Speeds hold for it alone."""

    processor: str
    cores: int  # that this process may use
    instruction_set: str  # the fastest that the processor has and kernels are compiled for
    memory_gib: float

    def __str__(self) -> str:
        """Return the machine for people."""
        return f"{self.processor}, {self.cores} cores, {self.instruction_set}, {self.memory_gib:.0f} GiB"


def this_machine() -> Machine:
    """Return the machine that runs this process."""
    return Machine(
        processor=processor_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instruction_set=instruction_set(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    )


def processor_slug(kernels: str | None = None) -> str:
    """Return processor and kernels for the name of a file.

    Such as 'amd-epyc-zen-4-avx512bf16'. Without `kernels`, they are the fastest that can run here.
    """
    return re.sub("[^a-z0-9]+", "-", f"{processor_name()} {kernels or instruction_set()}".lower())


def processor_name(listing: Path = _LISTING) -> str:
    """Return the processor's name, such as 'AMD EPYC Zen 4'.

    Where the system does not tell it, the kind of machine, such as 'aarch64'.
    """
    facts = dict(re.findall(r"^(\w[\w ]*?)\s*: (.+)$", _read(listing), re.MULTILINE))
    name = re.sub(r"\(R\)|\(TM\)|CPU|Processor|@.*", " ", facts.get("model name", platform.machine()))
    return " ".join([*name.split(), *_generation(facts)])


def _generation(facts: Mapping[str, str]) -> list[str]:
    """Return AMD's name of the processor's generation, if known."""
    if facts.get("vendor_id") != "AuthenticAMD":
        return []
    ranges, model = _AMD_GENERATIONS.get(int(facts["cpu family"]), {}), int(facts["model"])
    return [name for first, name in ranges.items() if first <= model][-1:]


def instruction_set(listing: Path = _LISTING) -> str:
    """Return the fastest known instruction set, or 'none'."""
    found = re.search(r"^(?:flags|Features)\s*: (.+)$", _read(listing), re.MULTILINE)
    flags = set(found[1].split()) if found else set()
    return next((name for name, needed in _SETS.items() if needed <= flags), "none")


def _read(listing: Path) -> str:
    return listing.read_text() if listing.exists() else ""
