"""The engines of the comparison and how to start them.

Runs in every peer's environment, so it imports only the standard library.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from benchmarks.peers.process import EngineProcess

ENVIRONMENTS = Path(__file__).parents[2] / ".peers"  # `make peers` creates one environment per peer
THREADS = 2  # for every engine
CACHE_BYTES = 3 << 29  # our KV cache: just 64 sequences of 192 tokens, since all engines share the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKind:
    """One engine of the comparison."""

    name: str
    module: str  # its runner in benchmarks.peers
    weights: str = ""  # format of its weights, if the runner has a choice
    environment: str = ""  # folder in ENVIRONMENTS, or empty for the benchmark's own environment
    preload: tuple[str, ...] = ()  # file names without ".so" of libraries to load first, if present
    has_prefix_cache: bool = True
    settings: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))  # environment variables

    @property
    def is_ours(self) -> bool:
        """Whether it is one of our engines."""
        return not self.environment

    @property
    def installed(self) -> bool:
        """Whether its environment is complete."""
        return self.is_ours or (ENVIRONMENTS / self.environment / "ready").exists()

    @property
    def python(self) -> str:
        """The Python of its environment."""
        return sys.executable if self.is_ours else str(ENVIRONMENTS / self.environment / "bin" / "python")

    def start(self, checkpoints: Path) -> EngineProcess:
        """Start its process, which loads the model in the background."""
        weights = [self.weights] if self.weights else []
        command = [self.python, "-m", f"benchmarks.peers.{self.module}", str(checkpoints), *weights]
        log = checkpoints / f"{'-'.join([self.module, *weights])}.log"
        return EngineProcess(self.name, command, self.variables(), log)

    def variables(self) -> dict[str, str]:
        """Return the environment variables of its process."""
        settings = {"OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1", **self.settings}
        if libraries := self._libraries():
            settings["LD_PRELOAD"] = ":".join(map(str, libraries))
        return settings

    def _libraries(self) -> list[Path]:
        folders = [ENVIRONMENTS / self.environment / "lib", *Path("/usr/lib").glob("*-linux-gnu")]
        found = [[path for folder in folders for path in folder.glob(f"{name}.so*")] for name in self.preload]
        return [paths[0] for paths in found if paths]


_VLLM_PRELOAD = ("libtcmalloc_minimal", "libiomp5")  # recommended by its manual
_VLLM_SETTINGS = MappingProxyType(
    {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB, must be an integer
        "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "PYTHONPATH": str(Path(__file__).parent / "vllm_path"),
        "VLLM_USE_AOT_COMPILE": "0",  # it fails to load its own cache and compiles for a minute on every start
    }
)

ENGINES = (
    EngineKind(name="tandem", module="tandem_engine"),
    EngineKind(name="tandem gRPC", module="tandem_grpc"),
    EngineKind(name="vllm", module="vllm_cpu", environment="vllm", preload=_VLLM_PRELOAD, settings=_VLLM_SETTINGS),
    EngineKind(name="llama.cpp", module="llama_cpp_python", environment="llama_cpp"),
    EngineKind(name="transformers", module="transformers_generate", environment="transformers", has_prefix_cache=False),
    EngineKind(name="transformers batching", module="transformers_continuous", environment="transformers"),
)

# Peers with fewer bits a weight, for `benchmarks.lowbit`.
LOW_BIT_PEERS = (
    EngineKind(
        name="vllm w8a8",
        module="vllm_cpu",
        weights="w8a8",
        environment="vllm",
        preload=_VLLM_PRELOAD,
        settings=_VLLM_SETTINGS,
    ),
    *(
        EngineKind(name=f"llama.cpp {weights}", module="llama_cpp_python", weights=weights, environment="llama_cpp")
        for weights in ("Q8_0", "Q4_0")
    ),
)
