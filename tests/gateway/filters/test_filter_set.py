"""Filters within a request: decisions, counts, and logs without content."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from safetensors.numpy import save_file
from structlog.testing import capture_logs

from chassis.errors import Code, FailedPrecondition, Internal
from checkpoint.manifest import read_manifest
from gateway.filters.image_filter import ImageClassifier, ImageFilter, read_classifier, write_classifier
from gateway.filters.text_checks import check_text
from processing import ChatMessage
from tandem.v1 import gateway_pb2, sampling_pb2, tensor_pb2
from tests.gateway.conftest import MakeWorld
from tests.gateway.halves import TAG, WIDTH
from tests.gateway.scripted import World, ask, error_of, eventually, read

IMAGE = b"an image"
DIGEST = bytes(range(32))
# A safetensors file: length of the header, header, data. safetensors cannot write bfloat16 from numpy.
_HEADER = json.dumps(
    {
        "__metadata__": {"classes": '["a"]', "thresholds": "[0.5]", "vision_digest": DIGEST.hex()},
        "weight": {"dtype": "BF16", "shape": [1, 4], "data_offsets": [0, 8]},
        "bias": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
).encode()
BFLOAT16_CLASSIFIER = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(12)


def count(kind: str, rule: str, action: str) -> float:
    labels = {"kind": kind, "rule": rule, "action": action}
    return REGISTRY.get_sample_value("tandem_gateway_filtered_total", labels) or 0.0


@pytest.fixture
def word_list(tmp_path: Path) -> str:
    path = tmp_path / "en.txt"
    path.write_text("blast\nsecret word\n")
    return str(path)


async def test_an_answer_ends_before_a_word_split_over_tokens(make_world: MakeWorld, word_list: str) -> None:
    """The tiny tokenizer makes one token per letter."""
    async with make_world(word_lists=(word_list,)) as world:
        world.say("Well, BLAST! And so on")
        world.language.hangs = True
        before = count("answer", "en", "end")
        with capture_logs() as logs:
            answer = await world.ask("What?", sampling=sampling_pb2.SamplingOptions(num_logprobs=0))
        assert answer.text == "Well, "
        assert answer.finished.finish_reason == sampling_pb2.FINISH_REASON_FILTERED
        assert len(answer.logprobs) == len("Well, ")
        assert count("answer", "en", "end") == before + 1
        assert "blast" not in json.dumps(logs).lower()
        assert [(log["kind"], log["rule"]) for log in logs if log["event"] == "filtered"] == [("answer", "en")]
        await eventually(lambda: world.language.num_running == 0)


async def test_a_word_is_masked_and_the_answer_goes_on(make_world: MakeWorld, word_list: str) -> None:
    async with make_world(word_lists=(word_list,), word_action="mask") as world:
        world.say("The secret word is blast, not blaster.")
        answer = await world.ask("What?")
        assert answer.text == "The *********** is *****, not blaster."
        assert answer.finished.finish_reason == sampling_pb2.FINISH_REASON_STOP
        error = await error_of(world.ask("What?", sampling=sampling_pb2.SamplingOptions(num_logprobs=0)))
        assert error.reason == "LOGPROBS_FILTERED"


async def test_masked_words_of_a_broken_off_answer_are_counted(make_world: MakeWorld, word_list: str) -> None:
    async with make_world(word_lists=(word_list,), word_action="mask") as world:
        world.say("A blast and")
        world.language.late_error = Internal("A bug.")
        before = count("answer", "en", "mask")
        assert (await error_of(world.ask("What?"))).code == Code.INTERNAL
        assert count("answer", "en", "mask") == before + 1


async def test_an_answer_ends_at_the_stop_string_or_the_word_that_comes_first(
    make_world: MakeWorld, word_list: str
) -> None:
    async with make_world(word_lists=(word_list,)) as world:
        world.say("a blast STOP")
        assert (await world.ask("?", stop=["STOP"])).finished.finish_reason == sampling_pb2.FINISH_REASON_FILTERED
        world.say("a STOP blast")
        answer = await world.ask("?", stop=["STOP"])
        assert (answer.text, answer.finished.finish_reason) == ("a ", sampling_pb2.FINISH_REASON_STOP)
        world.say("a blasSTOP")  # the pending text is not a word after all
        assert (await world.ask("?", stop=["STOP"])).text == "a blas"


@pytest.mark.parametrize("text", ["a\x00b", "\x1b[31mred", "a\x7f"])
async def test_a_control_character_is_refused_with_its_field(world: World, text: str) -> None:
    error = await error_of(world.ask(IMAGE, "What is it?", text))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "CONTROL_CHARACTER")
    assert error.field == "messages[0].parts[2].text"


@pytest.mark.parametrize("text", ["#" * 40, "!?.," * 10, "... ... ... ... ... ..."])
async def test_noise_is_refused(world: World, text: str) -> None:
    assert (await error_of(world.ask(text))).reason == "ONLY_NOISE"


@pytest.mark.parametrize(
    "text",
    ["???", "👍" * 17, "1" * 40, "哈" * 40, "a" * 100, "what\tis\r\nit?", "这是什么？", "page\x0c1\x0bof\x852\x92"],
)
async def test_a_possible_question_is_not_noise(world: World, text: str) -> None:
    await world.ask(text)


@pytest.mark.parametrize("produced", ["", "a\x00b", "\x1b[31mred\x1b[0m", "\x85", "#" * 40])
async def test_an_answer_of_the_model_goes_back_as_history(world: World, produced: str) -> None:
    """Otherwise an odd answer would end the conversation."""
    request = ask("What?")
    request.messages.add(role=gateway_pb2.ROLE_ASSISTANT, parts=[gateway_pb2.Part(text=produced)])
    request.messages.extend(ask("And now?").messages)
    await read(world.stub.Generate(request))


def test_the_result_of_a_tool_is_taken_as_it_is() -> None:
    """Programs print colours and rulers."""
    messages: list[ChatMessage] = [
        {"role": "user", "content": [{"type": "text", "text": "List the files."}]},
        {"role": "tool", "content": [{"type": "text", "text": "\x1b[34mdocs\x1b[0m" + "-" * 40}]},
    ]
    check_text(messages)


async def test_text_checks_can_be_disabled(make_world: MakeWorld) -> None:
    async with make_world(text_checks=False) as world:
        await world.ask("\x1b[31m" + "#" * 40)


def classifier(threshold: float, *, width: int = WIDTH) -> ImageClassifier:
    """Return a classifier with one class.

    Its score is sigmoid(2) for visual tokens of ones, which the scripted vision stage returns.
    """
    return ImageClassifier(
        weight_CW=np.full((1, width), 2 / width, np.float32),
        bias_C=np.zeros(1, np.float32),
        classes=("weapon",),
        thresholds_C=np.array([threshold], np.float32),
    )


@pytest.mark.parametrize(("threshold", "is_refused"), [(0.88, True), (0.89, False)])  # sigmoid(2) is 0.881
async def test_an_image_is_refused_if_a_class_is_detected_in_its_visual_tokens(
    threshold: float, is_refused: bool, make_world: MakeWorld, store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "classifier.safetensors"
    write_classifier(path, classifier(threshold), read_manifest(store / TAG).vision.digest)
    async with make_world(image_classifiers=(str(path),)) as world:
        for _ in range(2):  # a cached image is checked too
            if is_refused:
                error = await error_of(world.ask("Look:", IMAGE, "What is it?"))
                assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "IMAGE_FILTERED")
                assert (error.field, error.metadata["classes"]) == ("messages[0].parts[1].image", "weapon")
                await eventually(lambda: world.language.num_running == 0)
            else:
                answer = await world.ask("Look:", IMAGE, "What is it?")
                assert answer.finished.images[0].cache_level != gateway_pb2.CACHE_LEVEL_UNSPECIFIED
        assert world.vision.num_encodes == 1


async def test_an_image_without_a_matching_classifier_is_refused(make_world: MakeWorld, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    write_classifier(path, classifier(0.5), DIGEST)
    async with make_world(image_classifiers=(str(path),)) as world:
        error = await error_of(world.ask(IMAGE, "What is it?"))
        assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "NO_CLASSIFIER")
        await world.ask("And without an image?")


def test_a_classifier_equals_the_same_computation_in_numpy(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    weight_CW, bias_C = generator.normal(size=(3, 8)).astype(np.float32), generator.normal(size=3).astype(np.float32)
    written = ImageClassifier(
        weight_CW=weight_CW, bias_C=bias_C, classes=("a", "b", "c"), thresholds_C=np.full(3, 0.5, np.float32)
    )
    write_classifier(tmp_path / "classifier.safetensors", written, DIGEST)
    digest, read = read_classifier(tmp_path / "classifier.safetensors")
    tokens_ND = (generator.normal(size=(5, 8)).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    data = (tokens_ND.view(np.uint32) >> 16).astype("<u2").tobytes()
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=(5, 8), data=data)
    scores_C = weight_CW @ tokens_ND.mean(axis=0) + bias_C
    assert read.detect(tensor) == [name for name, score in zip("abc", scores_C, strict=True) if score >= 0]
    assert digest == DIGEST


def invalid_classifiers() -> dict[str, Callable[[Path], object]]:
    metadata = {"classes": '["a"]', "thresholds": "[0.5]", "vision_digest": DIGEST.hex()}
    ones = {"weight": np.ones((1, 4), np.float32), "bias": np.ones(1, np.float32)}
    return {
        "not safetensors": lambda path: path.write_bytes(b"nothing"),
        "missing file": lambda path: None,
        "no metadata": lambda path: save_file(ones, path),
        "no bias": lambda path: save_file({"weight": ones["weight"]}, path, metadata),
        "weights of NaN": lambda path: save_file({**ones, "weight": ones["weight"] * np.nan}, path, metadata),
        "a threshold of NaN": lambda path: save_file(ones, path, {**metadata, "thresholds": "[NaN]"}),
        "float16": lambda path: save_file({**ones, "weight": np.ones((1, 4), np.float16)}, path, metadata),
        "bfloat16": lambda path: path.write_bytes(BFLOAT16_CLASSIFIER),
        "two-dimensional bias": lambda path: save_file({**ones, "bias": np.ones((1, 1), np.float32)}, path, metadata),
        "one class too many": lambda path: save_file(ones, path, {**metadata, "classes": '["a", "b"]'}),
        "thresholds not a list": lambda path: save_file(ones, path, {**metadata, "thresholds": "0.5"}),
        "no digest": lambda path: save_file(ones, path, {**metadata, "vision_digest": "abc"}),
    }


@pytest.mark.parametrize("case", list(invalid_classifiers()))
def test_an_invalid_classifier_is_refused_with_its_path(case: str, tmp_path: Path) -> None:
    path = tmp_path / "classifier.safetensors"
    invalid_classifiers()[case](path)
    with pytest.raises(FailedPrecondition) as raised:
        ImageFilter([path])
    assert raised.value.reason == "BAD_CLASSIFIER"
    assert raised.value.where == path
