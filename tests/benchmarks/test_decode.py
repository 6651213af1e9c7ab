import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.decode import choose
from benchmarks.peers.checkpoints import CACHE_BYTES_PER_TOKEN, SHAPE, WEIGHT_BYTES
from benchmarks.peers.comparison import Results
from benchmarks.peers.figures import fill, plot
from benchmarks.peers.limits import Limits
from benchmarks.peers.process import EngineFailed, EngineProcess
from benchmarks.peers.protocol import Recording
from benchmarks.peers.workloads import BATCHES, PREFILL, Sample, SharedPrefix, decode_rate
from benchmarks.tools.report import Report
from checkpoint.families import ResamplerModelConfig, layout
from checkpoint.presets import RESAMPLER_PRESETS


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EngineProcess]:
    command = [sys.executable, "-m", "tests.benchmarks.counting_engine", str(tmp_path)]
    process = EngineProcess("counting", command, {}, tmp_path / "log")
    yield process
    process.close()


def test_an_engine_answers_several_requests(engine: EngineProcess, tmp_path: Path) -> None:
    engine.wait()
    assert engine.version == f"counting engine, {tmp_path}"
    assert engine.complete([[7, 8], [9, 20]], 2).token_ids == [[9, 10], [21, 22]]
    assert engine.complete([[7]], 1).token_ids == [[8]]
    assert "output of a library" in (tmp_path / "log").read_text()  # not among the answers


def test_the_error_of_a_stopped_engine_quotes_its_log(engine: EngineProcess) -> None:
    engine.wait()
    with pytest.raises(EngineFailed, match=r"ended(.|\n)*a prompt began with 0"):
        engine.complete([[0]], 1)


def test_an_answer_with_a_missing_token_is_an_error(engine: EngineProcess) -> None:
    engine.wait()
    with pytest.raises(EngineFailed, match=r"\[1\] tokens instead of 2"):
        engine.complete([[1]], 2)


def test_the_decode_rate_counts_only_while_all_sequences_decode() -> None:
    # The second sequence starts when the first has two tokens. The first ends when the second has two.
    recording = Recording([[1, 2, 3, 4], [1, 2, 3, 4]], [[1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0]])
    assert decode_rate(recording) == 4 / 2.0
    sample = Sample.of(recording)
    assert (sample.elapsed_s, sample.first_token_s) == (5.0, 2.0)


def test_sequences_without_overlap_have_no_decode_rate() -> None:
    assert decode_rate(Recording([[1, 2], [1, 2]], [[1.0, 2.0], [3.0, 4.0]])) is None
    assert decode_rate(Recording([[1]], [[1.0]])) is None


def test_every_round_has_its_own_prompts_shared_by_all_engines() -> None:
    workload = BATCHES[1]
    assert workload.prompts(0) == workload.prompts(0)
    first, second = (set(map(tuple, workload.prompts(number))) for number in (0, 1))
    assert not first & second


def test_weight_bytes_match_the_checkpoint_layout() -> None:
    tiny = RESAMPLER_PRESETS["tiny"]
    config = ResamplerModelConfig(vision=tiny.vision, resampler=tiny.resampler, language=SHAPE)
    assert sum(2 * spec.num_parameters for spec in layout(config) if spec.half == "language") == WEIGHT_BYTES


def test_peers_are_chosen_by_name_and_our_engines_are_always_included() -> None:
    assert [kind.name for kind in choose("vllm")] == ["tandem", "tandem gRPC", "vllm"]
    with pytest.raises(SystemExit, match="no peer nobody"):
        choose("nobody")


def sample(elapsed_s: float, decode_rate: float | None = 10.0) -> Sample:
    return Sample(elapsed_s=elapsed_s, first_token_s=0.1, decode_rate=decode_rate, first_token_ids=[1])


def test_figures_compare_with_the_best_peer_within_each_round(tmp_path: Path) -> None:
    results = Results(states={"tandem": "ours", "vllm": "theirs", "llama.cpp": "not installed", "transformers": "slow"})
    results.read_bandwidth, results.matmul_peaks = {"batch 1": [2.5e10, 1.25e10]}, [3e11]
    # The machine became twice as slow between the rounds. Only ratios within a round show that ours is faster.
    results.samples["batch 1"] = {
        "tandem": [sample(2.0), sample(4.0)],
        "vllm": [sample(3.0), sample(6.0)],
        "transformers": [sample(12.0)],
    }
    results.samples[PREFILL.name] = {"tandem": [sample(2.0, None)], "vllm": [sample(1.0, None)]}
    results.shared = {"tandem": [SharedPrefix(first_s=1.0, later_s=0.05, elapsed_s=2.0)]}
    results.step_s = {(1, 128): [0.07], (32, 128): [0.8]}
    report = Report("decode", "Decoding")
    fill(report, results)

    figures = {figure.name: figure for figure in report.figures}
    assert figures["batch 1: tandem / vllm"].value == 1.5
    assert figures["batch 1: tandem / vllm"].met
    assert figures["prefill of 1024: tandem / vllm"].value == 0.5
    assert not figures["prefill of 1024: tandem / vllm"].met
    assert figures["shared prefix: tandem, time saved when cached"].met
    # 1.2 GB at 18.75 GB/s take 64 ms, and 32 sequences x 1.2 GFLOP at 0.3 TFLOP/s 128 ms.
    by_reading = figures["step time, 1 sequence of 128 / limit by read bandwidth"]
    assert by_reading.value == pytest.approx(0.07 / 0.064, rel=0.02)
    assert by_reading.met
    by_arithmetic = figures["step time, 32 sequences of 128 / limit by matrix products"]
    assert by_arithmetic.value == pytest.approx(0.8 / 0.128, rel=0.03)
    assert not by_arithmetic.met
    assert "llama.cpp: not installed" in figures
    report.publish(lambda axes: plot(axes, results), tmp_path / "decode.json")
    assert json.loads((tmp_path / "decode.json").read_text())["details"]["read_bandwidth"] == results.read_bandwidth


def test_the_limit_of_a_step_is_the_longer_of_reading_and_arithmetic() -> None:
    limits = Limits(
        read_bandwidth=WEIGHT_BYTES, matmul_peak=4 * WEIGHT_BYTES
    )  # a second to read, a quarter to multiply
    assert limits.reading_s(1, 0) == limits.reading_s(8, 0) == 1
    assert limits.arithmetic_s(2, 0) == 0.5
    assert [limits.step_s(count, 0) for count in (1, 4, 8)] == [1, 1, 2]
    assert limits.reading_s(3, 100) == 1 + 300 * CACHE_BYTES_PER_TOKEN / WEIGHT_BYTES
    assert limits.arithmetic_s(1, 100) > limits.arithmetic_s(1, 0)
