"""Real stacks behind real doors, for clients of other makers."""

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from openai import OpenAI

from checkpoint.initial import create_checkpoint
from checkpoint.manifest import TEMPLATE_FILE, read_manifest, write_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from tandem.stack import Stack, StackConfig
from tests.gateway.api_keys import tenant_entry

REPOSITORY = Path(__file__).parents[3]
TEMPLATE = (REPOSITORY / "tests" / "qwen3_vl_template.jinja").read_bytes()
BAG, UMBRELLAS = (REPOSITORY / "demo" / "images" / f"{name}.png" for name in ("bag-and-bottle", "umbrellas-and-watch"))
TOOLS_TAG = "tiny-tools-v1.0.0"
KEY, SLOW_KEY = "a key that the gateway knows", "a key with a limit"


def base_url(stack: Stack) -> str:
    """Return the address that clients of OpenAI's API take."""
    return f"http://{stack.address_of('http')}/v1"


@pytest.fixture(scope="module")
def demo() -> Iterator[Stack]:
    """Yield the demo model behind a door."""
    config = StackConfig(models=REPOSITORY / "models", release="tandem-demo-v1.1.0", drain_s=2, http_port=0)
    with Stack(config) as stack:
        yield stack


@dataclass(frozen=True)
class Tools:
    """A stack with tools in its template, and with keys."""

    stack: Stack
    client: OpenAI


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tools]:
    """Yield a random model with the chat template of Qwen3-VL."""
    folder = tmp_path_factory.mktemp("tools")
    preset = RESAMPLER_PRESETS["tiny"]
    longer = preset.language.model_copy(update={"context_length": 4096})
    create_checkpoint(folder / "models", TOOLS_TAG, preset.model_copy(update={"language": longer}))
    replace_template(folder / "models" / TOOLS_TAG)
    keys = folder / "keys.toml"
    keys.write_text(tenant_entry("a", KEY) + tenant_entry("slow", SLOW_KEY, requests_per_minute=1))
    config = StackConfig(
        models=folder / "models",
        release=TOOLS_TAG,
        precision="float32",
        threads=1,
        drain_s=2,
        http_port=0,
        gateway_flags=("--keys", str(keys)),
    )
    with Stack(config) as stack, OpenAI(base_url=base_url(stack), api_key=KEY) as client:
        yield Tools(stack, client)


def replace_template(folder: Path) -> None:
    """Give a checkpoint the chat template of Qwen3-VL."""
    (folder / TEMPLATE_FILE).write_bytes(TEMPLATE)
    manifest = read_manifest(folder)
    files = {**manifest.files, TEMPLATE_FILE: hashlib.sha256(TEMPLATE).digest()}
    write_manifest(manifest.model_copy(update={"files": files}), folder)


@pytest.fixture(scope="module")
def client(demo: Stack) -> Iterator[OpenAI]:
    """Yield the official client of the demo."""
    with OpenAI(base_url=base_url(demo), api_key="none") as client:
        yield client


def data_url(path: Path) -> str:
    """Return an image as a data: URL."""
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
