"""Memory and latency of the full-size model on one machine.

Creates `qwen3-vl-8b` with random bfloat16 weights in four shards (13 GB on disk). `--models` names a folder to keep it
in. Starts vision service, language service and gateway, and sends a JPEG. Checks the visual tokens, and that each stage
loads only its own half of the model.
"""

import hashlib
import io
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
from matplotlib.axes import Axes
from PIL import Image as PillowImage
from PIL import ImageDraw

from benchmarks.tools.machine import read_bandwidth
from benchmarks.tools.processes import peak_bytes
from benchmarks.tools.report import Report, parse_arguments
from tandem import Client
from tandem.stack import Stack, StackConfig
from tandem.v1 import language_pb2_grpc, model_pb2, vision_pb2, vision_pb2_grpc

TAG = "qwen3-vl-8b-v1.1.0"
GIB = 1 << 30
ALLOWANCE_BYTES = 2 * GIB  # memory that a stage may use in addition to its weights
KV_CACHE_BYTES = GIB  # part of this allowance. The rest is for activations, Python and torch.


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Measurements of one run."""

    vision: model_pb2.ModelInfo
    language: model_pb2.ModelInfo
    token_shape: tuple[int, ...]
    num_token_bytes: int
    encode_s: float
    first_token_s: list[float]  # of one question about one image, asked several times
    between_tokens_s: list[float]
    peak_bytes: dict[str, int]  # by service


def photograph(seed: int) -> bytes:
    """Return a JPEG of 1200 x 900 pixels.

    It has smooth light, shapes and noise, like a camera's photograph.
    """
    rows, columns = np.mgrid[0:900, 0:1200]
    light = np.stack([columns / 1200, rows / 900, 1 - columns / 1200], axis=-1) * 200
    noise = np.random.default_rng(seed).normal(0, 8, light.shape)
    image = PillowImage.fromarray(np.clip(light + noise, 0, 255).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((350, 250, 850, 750), fill=(180, 40, 30))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def make_checkpoint(models: Path) -> None:
    """Write the preset into the store, unless it exists."""
    if (models / TAG).exists():
        return
    command = [sys.executable, "-m", "tandem", "checkpoint", "new", "--preset", "qwen3-vl-8b", "--tag", TAG]
    command += ["--shards", "4", "--models", str(models)]
    subprocess.run(command, check=True)


def query_stages(
    stack: Stack, jpegs: Sequence[bytes]
) -> tuple[model_pb2.ModelInfo, model_pb2.ModelInfo, vision_pb2.EncodeResponse, float]:
    """Return both models, an image's visual tokens and encoding time.

    The encoding time is the median over `jpegs`, seconds.
    """
    with (
        grpc.insecure_channel(stack.address_of("vision")) as vision_channel,
        grpc.insecure_channel(stack.address_of("language")) as language_channel,
    ):
        vision = vision_pb2_grpc.VisionServiceStub(vision_channel)
        language = language_pb2_grpc.LanguageServiceStub(language_channel)
        samples = []
        for jpeg in jpegs:  # all different, since the service caches results
            request = vision_pb2.EncodeRequest(tag=TAG, image=jpeg, image_sha256=hashlib.sha256(jpeg).digest())
            start = time.perf_counter()
            [response] = vision.Encode(request)
            samples.append(time.perf_counter() - start)
        get = model_pb2.GetModelRequest(tag=TAG)
        return vision.GetModel(get).model, language.GetModel(get).model, response, statistics.median(samples)


def stream_tokens(stack: Stack, jpeg: bytes, num_tokens: int) -> tuple[list[float], list[float]]:
    """Ask one question three times and measure the answers.

    Returns the times to first token and the mean times between tokens, seconds.
    """
    first_token_s, gaps = [], []
    with Client(stack.address) as client:
        for _ in range(3):
            answer = client.ask("Describe it.", images=[jpeg], max_tokens=num_tokens, ignore_eos=True)
            if answer.usage.completion_tokens != num_tokens:
                raise RuntimeError(f"the answer has {answer.usage.completion_tokens} tokens instead of {num_tokens}")
            gaps.append(answer.timings.decode_ms / 1000 / (num_tokens - 1))
            first_token_s.append(answer.timings.first_token_ms / 1000)
    return first_token_s, gaps


def measure(models: Path, num_tokens: int) -> Measured:
    """Run the stack and measure it."""
    config = StackConfig(
        models=models,
        release=TAG,
        precision="bfloat16",
        threads=2,
        language_flags=["--kv-cache-bytes", str(KV_CACHE_BYTES)],
    )
    with Stack(config) as stack:
        vision, language, response, encode_s = query_stages(stack, [photograph(seed) for seed in range(5)])
        first_token_s, gaps = stream_tokens(stack, photograph(5), num_tokens)
        peaks = {name: peak_bytes(pid) for name, pid in stack.pids.items()}
    tokens = response.visual_tokens.embeddings
    return Measured(
        vision=vision,
        language=language,
        token_shape=tuple(tokens.shape),
        num_token_bytes=len(tokens.data),
        encode_s=encode_s,
        first_token_s=first_token_s,
        between_tokens_s=gaps,
        peak_bytes=peaks,
    )


def fill(report: Report, seen: Measured, bandwidth: float) -> None:
    """Add the figures to the report."""
    weights, vision_weights = seen.language.num_weight_bytes, seen.vision.num_weight_bytes
    gap_s = statistics.median(seen.between_tokens_s)
    shape_is_right = seen.token_shape == (32, 4096)
    report.add("parameters, both halves", (seen.vision.num_parameters + seen.language.num_parameters) / 1e9, "billion")
    report.add("vision service: load", seen.vision.load_s, "s")
    report.add("language service: load", seen.language.load_s, "s")
    report.add("visual tokens", seen.token_shape[0], "tokens", aim="32 x 4096", met=shape_is_right)
    report.add(
        "visual tokens on the wire", seen.num_token_bytes / 1024, "KiB", aim="256", met=seen.num_token_bytes == 1 << 18
    )
    report.add("vision service: weights", vision_weights / GIB, "GiB")
    vision_peak, language_peak = seen.peak_bytes["vision"], seen.peak_bytes["language"]
    is_small = vision_peak < vision_weights + ALLOWANCE_BYTES
    report.add("vision service: peak memory", vision_peak / GIB, "GiB", aim="no decoder loaded", met=is_small)
    report.add("language service: weights", weights / GIB, "GiB")
    report.add("language service: KV cache", seen.language.language.num_cache_bytes / GIB, "GiB")
    is_within = language_peak <= weights + ALLOWANCE_BYTES
    report.add("language service: peak memory", language_peak / GIB, "GiB", aim="weights + 2", met=is_within)
    report.add("gateway: peak memory", seen.peak_bytes["gateway"] / GIB, "GiB")
    report.add("encode one image p50", seen.encode_s * 1000, "ms")
    report.add("time to first token, new image", seen.first_token_s[0] * 1000, "ms")
    report.add("time to first token, known image", min(seen.first_token_s[1:]) * 1000, "ms")
    report.add("time per token p50", gap_s * 1000, "ms")
    report.add("read bandwidth of this machine", bandwidth / 1e9, "GB/s")
    report.add("weights read per second, share of the read bandwidth", 100 * weights / gap_s / bandwidth, "%")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure memory and latency of the full-size model.",
        arguments,
        models={"type": Path, "help": "keep the checkpoint in this model store (default: a temporary one)"},
    )
    models = options.models or Path(tempfile.mkdtemp(prefix="tandem-full-size-"))
    try:
        make_checkpoint(models)
        # The speed of a shared machine changes. Take the better of two measurements as its limit.
        before = read_bandwidth()
        seen = measure(models, num_tokens=8 if options.quick else 32)
        bandwidth = max(before, read_bandwidth())
    finally:
        if options.models is None:
            shutil.rmtree(models)
    report = Report("full_size", f"Full size: {TAG}, bfloat16, this machine's CPU")
    fill(report, seen, bandwidth)
    report.details["between_tokens_s"] = seen.between_tokens_s

    def plot(axes: Axes) -> None:
        names = list(seen.peak_bytes)
        weights = {"vision": seen.vision.num_weight_bytes, "language": seen.language.num_weight_bytes}
        axes.bar(names, [seen.peak_bytes[name] / GIB for name in names], label="peak memory")
        axes.bar(names, [weights.get(name, 0) / GIB for name in names], width=0.4, label="weights")
        axes.set(ylabel="GiB")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
