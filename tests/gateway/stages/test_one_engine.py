from gateway.stages.one_engine import OneEngine
from tandem.v1 import model_pb2

TAG = "tiny-v1.0.0"


def language(backend: str) -> model_pb2.ModelInfo:
    return model_pb2.ModelInfo(backend=backend, language=model_pb2.LanguageModelInfo(width=64))


def test_the_first_engine_of_a_tag_keeps_it() -> None:
    """Replicas of another one get no requests, in any order."""
    engines = OneEngine()
    assert engines.of(TAG, [language("vllm")]) == "vllm"
    assert engines.of(TAG, [language("torch"), language("vllm")]) == "vllm"
    assert engines.of(TAG, [language("vllm"), language("torch")]) == "vllm"


def test_when_its_last_replica_is_gone_another_engine_takes_over() -> None:
    engines = OneEngine()
    assert engines.of(TAG, [language("torch")]) == "torch"
    assert engines.of(TAG, [language("vllm")]) == "vllm"
    assert engines.of(TAG, [language("torch"), language("vllm")]) == "vllm"


def test_gateways_that_see_both_at_once_choose_the_same() -> None:
    both = [language("vllm"), language("torch")]
    assert OneEngine().of(TAG, both) == OneEngine().of(TAG, both[::-1])


def test_each_tag_has_its_own_engine() -> None:
    engines = OneEngine()
    assert engines.of(TAG, [language("torch")]) == "torch"
    assert engines.of("tiny-v1.1.0", [language("vllm")]) == "vllm"


def test_backends_of_vision_may_be_mixed() -> None:
    """Their encoder ids keep their visual tokens apart."""
    infos = [model_pb2.ModelInfo(backend=one, vision=model_pb2.VisionModelInfo(token_width=1)) for one in ("a", "b")]
    assert OneEngine().of(TAG, infos) is None
