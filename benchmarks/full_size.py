"""Memory and latency of the full-size model on one machine.

    python -m benchmarks.full_size                  # bfloat16
    python -m benchmarks.full_size --scheme w4a16   # 4 bits a weight, compared with bfloat16
    python -m benchmarks.full_size --quick          # two layers of the decoder

Creates `qwen3-vl-8b` with random weights in four shards (13 GB on disk, up to 7 GB more with a scheme). `--models`
names a folder to keep it in. Starts vision service, language service and gateway, and sends a JPEG. Checks the visual
tokens, and that each stage loads only its own half of the model.

With a scheme, the decoder's steps are first compared with those in bfloat16. Both are in memory at once (17 GB) and
take turns.
"""

import gc
import hashlib
import io
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import grpc
import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image as PillowImage
from PIL import ImageDraw
from rich.console import Console
from rich.progress import track

from benchmarks.tools.decoder_steps import SteppedDecoder
from benchmarks.tools.full_size_models import SchemeName, make_checkpoint
from benchmarks.tools.machine import read_bandwidth
from benchmarks.tools.processes import peak_bytes
from benchmarks.tools.report import Report, parse_arguments
from checkpoint.store import ModelStore
from checkpoint.weights import load_half
from tandem import Client
from tandem.stack import Stack, StackConfig
from tandem.v1 import language_pb2_grpc, model_pb2, vision_pb2, vision_pb2_grpc

GIB = 1 << 30
THREADS = 2
ALLOWANCE_BYTES = 2 * GIB  # memory that a stage may use in addition to its weights
SEQUENCES = (1, 8)  # that decode at once, of the compared steps
NUM_STEPS = 8
DECODER_AIM_BYTES = 7e9  # weights of a decoder with 4 bits
SPEEDUP_AIM = 1.2  # tokens/s of a scheme, relative to bfloat16
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Decoding steps in turns. Lists have one entry per round."""

    rates: dict[int, list[tuple[float, float]]]  # by sequences: tokens/s of the scheme and of bfloat16
    read_bandwidth: list[float]  # bytes/s
    bytes_per_step: tuple[int, int]  # weights that the scheme and bfloat16 read


def compare_steps(models: Path, tags: tuple[str, str], rounds: int) -> Compared:
    """Measure the steps of two decoders in turns."""
    decoders = [_load(models, tag) for tag in tags]
    rates: dict[int, list[tuple[float, float]]] = {count: [] for count in SEQUENCES}
    bandwidths = []
    for _ in track(range(rounds), "steps", console=Console(stderr=True)):
        bandwidths.append(read_bandwidth(repetitions=3))
        for count, taken in rates.items():
            ours, theirs = (decoder.rate(count) for decoder in decoders)
            taken.append((ours, theirs))
    first, second = (decoder.weight_bytes_per_step for decoder in decoders)
    return Compared(rates=rates, read_bandwidth=bandwidths, bytes_per_step=(first, second))


def _load(models: Path, tag: str) -> SteppedDecoder:
    half = load_half(ModelStore(models).folder(tag), "language", dtype=torch.bfloat16)
    return SteppedDecoder(half.config.language, half.tensors, max_sequences=max(SEQUENCES), num_steps=NUM_STEPS)


def query_stages(
    stack: Stack, tag: str, jpegs: Sequence[bytes]
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
            request = vision_pb2.EncodeRequest(tag=tag, image=jpeg, image_sha256=hashlib.sha256(jpeg).digest())
            start = time.perf_counter()
            [response] = vision.Encode(request)
            samples.append(time.perf_counter() - start)
        get = model_pb2.GetModelRequest(tag=tag)
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


def measure(models: Path, tag: str, num_tokens: int) -> Measured:
    """Run the stack and measure it."""
    config = StackConfig(
        models=models,
        release=tag,
        precision="bfloat16",
        threads=THREADS,
        language_flags=["--kv-cache-bytes", str(KV_CACHE_BYTES)],
    )
    with Stack(config) as stack:
        vision, language, response, encode_s = query_stages(stack, tag, [photograph(seed) for seed in range(5)])
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
    """Add the figures of the stack to the report."""
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
    language = seen.language.language
    # A decoder with few bits has a head of its own. Then a step reads one row of the embedding.
    unread = 0 if seen.language.precision == "bfloat16" else 2 * language.vocab_size * language.width
    share = (weights - unread) / gap_s / bandwidth
    report.add("weights read per second, share of the read bandwidth", 100 * share, "%")


def fill_comparison(report: Report, scheme: str, num_weight_bytes: int, compared: Compared) -> None:
    """Add the size and speed of a scheme."""
    aim, met = ("at most 7", num_weight_bytes <= DECODER_AIM_BYTES) if scheme != "w8a8" else ("", None)
    report.add(f"decoder in {scheme}", num_weight_bytes / 1e9, "GB", aim=aim, met=met)
    for count, taken in compared.rates.items():
        steps = f"steps of {count}"
        for name, place in ((scheme, 0), ("bf16", 1)):
            report.add(f"{steps}: {name}", statistics.median(rates[place] for rates in taken), "tokens/s")
        ratio = statistics.median(ours / theirs for ours, theirs in taken)
        name, aim = f"{steps}: {scheme} / bf16", f"at least {SPEEDUP_AIM:g}"
        report.add(name, ratio, "x", aim=aim, met=ratio >= SPEEDUP_AIM)
    for name, place in ((scheme, 0), ("bf16", 1)):
        pairs = zip(compared.rates[1], compared.read_bandwidth, strict=True)
        share = statistics.median(rates[place] * compared.bytes_per_step[place] / limit for rates, limit in pairs)
        report.add(f"steps of 1: {name}, weights read per second, share of the read bandwidth", 100 * share, "%")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure memory and latency of the full-size model.",
        arguments,
        models={"type": Path, "help": "keep the checkpoints in this model store (default: a temporary one)"},
        scheme={"choices": get_args(SchemeName), "default": "bf16", "help": "weights of the decoder (default: bf16)"},
    )
    torch.set_num_threads(THREADS)
    models = options.models or Path(tempfile.mkdtemp(prefix="tandem-full-size-"))
    compared = None
    try:
        tag = make_checkpoint(models, options.scheme, quick=options.quick)
        if options.scheme != "bf16":
            exact = make_checkpoint(models, "bf16", quick=options.quick)
            compared = compare_steps(models, (tag, exact), rounds=2 if options.quick else 5)
            gc.collect()  # the weights of both decoders
        # The speed of a shared machine changes. Take the better of two measurements as its limit.
        before = read_bandwidth()
        seen = measure(models, tag, num_tokens=8 if options.quick else 32)
        bandwidth = max(before, read_bandwidth())
    finally:
        if options.models is None:
            shutil.rmtree(models)
    name = "full_size" if options.scheme == "bf16" else f"full_size-{options.scheme}"
    report = Report(name, f"Full size: {tag}, decoder in {options.scheme}, this machine's CPU")
    fill(report, seen, bandwidth)
    report.details["between_tokens_s"] = seen.between_tokens_s
    if compared is not None:
        fill_comparison(report, options.scheme, seen.language.num_weight_bytes, compared)
        report.details["compared"] = asdict(compared)
    report.publish(lambda axes: plot(axes, seen), options.json)


def plot(axes: Axes, seen: Measured) -> None:
    """Plot peak memory and weights of each service."""
    names = list(seen.peak_bytes)
    weights = {"vision": seen.vision.num_weight_bytes, "language": seen.language.num_weight_bytes}
    axes.bar(names, [seen.peak_bytes[name] / GIB for name in names], label="peak memory")
    axes.bar(names, [weights.get(name, 0) / GIB for name in names], width=0.4, label="weights")
    axes.set(ylabel="GiB")
    axes.legend()


if __name__ == "__main__":
    main()
