import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.families import HALVES, LanguageConfig, Part, ResamplerConfig, ResamplerModelConfig, VisionConfig
from checkpoint.identity import TensorDigest, encoder_id, half_digest, visual_key
from checkpoint.presets import RESAMPLER_PRESETS

TINY = RESAMPLER_PRESETS["tiny"]

digests = st.binary(min_size=32, max_size=32)
tensors = st.builds(
    TensorDigest,
    st.sampled_from(["bfloat16", "float16", "float32"]),
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
    digests,
)
halves = st.dictionaries(st.text(min_size=1, max_size=8), tensors, min_size=1, max_size=4)


@given(halves)
def test_the_order_of_tensors_does_not_change_a_half(half: dict[str, TensorDigest]) -> None:
    assert half_digest(TINY, "vision", half) == half_digest(TINY, "vision", dict(reversed(half.items())))


@given(halves, halves)
def test_different_halves_have_different_digests(one: dict[str, TensorDigest], other: dict[str, TensorDigest]) -> None:
    assert (half_digest(TINY, "vision", one) == half_digest(TINY, "vision", other)) == (one == other)


@given(halves, st.data())
def test_every_property_of_a_tensor_changes_the_digest(half: dict[str, TensorDigest], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(half)))
    tensor = half[name]
    rest = {key: value for key, value in half.items() if key != name}
    changed: list[dict[str, TensorDigest]] = [
        rest,
        rest | {name + "x": tensor},
        rest | {name: replace(tensor, dtype=tensor.dtype + "x")},
        rest | {name: replace(tensor, shape=(*tensor.shape, 1))},
        rest | {name: replace(tensor, sha256=hashlib.sha256(tensor.sha256).digest())},
    ]
    found = [half_digest(TINY, "vision", half), *(half_digest(TINY, "vision", other) for other in changed)]
    assert len(set(found)) == len(found)


def test_the_two_halves_never_share_a_digest() -> None:
    assert half_digest(TINY, "vision", {}) != half_digest(TINY, "language", {})


def _with(part: str, **fields: Any) -> ResamplerModelConfig:
    return TINY.model_copy(update={part: getattr(TINY, part).model_copy(update=fields)})


@pytest.mark.parametrize(
    ("config", "vision_changes", "language_changes"),
    [
        (_with("vision", norm_eps=1e-5), True, False),
        (_with("vision", image_mean=(0.5, 0.5, 0.5)), True, False),
        (_with("resampler", num_layers=2), True, False),
        (_with("resampler", num_queries=16), True, True),  # the decoder expects that many positions
        (_with("language", width=32), True, True),  # the resampler projects to it
        (_with("language", rope_theta=5.0), False, True),
    ],
)
def test_a_half_depends_on_its_own_configuration(
    config: ResamplerModelConfig, vision_changes: bool, language_changes: bool
) -> None:
    changes = {half: half_digest(config, half, {}) != half_digest(TINY, half, {}) for half in HALVES}
    assert changes == {"vision": vision_changes, "language": language_changes}


def test_defaults_of_the_configuration_never_change() -> None:
    # A half's digest omits fields at their default, so that fields can be added. A changed default would give two
    # different models the same digest.
    assert RESAMPLER_PRESETS["qwen3-vl-8b"].half_fields("vision") == {
        "vision": {},
        "resampler": {},
        "token_width": 4096,
    }
    released: dict[type[Part], dict[str, object]] = {
        VisionConfig: {
            "image_size": 224,
            "patch_size": 14,
            "width": 1024,
            "num_layers": 24,
            "num_heads": 16,
            "mlp_width": 4096,
            "pool_size": 2,
            "positions": "learned",
            "linear_bias": False,
            "norm_eps": 1e-6,
            "image_mean": (0.48145466, 0.4578275, 0.40821073),
            "image_std": (0.26862954, 0.26130258, 0.27577711),
        },
        ResamplerConfig: {
            "kind": "perceiver",
            "num_queries": 32,
            "num_layers": 6,
            "num_heads": 16,
            "head_dim": 64,
            "mlp_width": 4096,
            "norm_eps": 1e-6,
        },
        LanguageConfig: {
            "width": 4096,
            "num_layers": 32,
            "num_heads": 32,
            "num_kv_heads": 8,
            "head_dim": 128,
            "mlp_width": 11008,
            "vocab_size": 151936,
            "context_length": 32768,
            "norm_eps": 1e-6,
            "rope_theta": 1_000_000.0,
            "rope_scaling": None,
            "qk_norm": False,
            "attention_bias": False,
            "tied_embeddings": True,
            "modality_embedding": False,
        },
    }
    for part, defaults in released.items():
        now = {name: field.default for name, field in part.model_fields.items()}
        assert now == now | defaults


@given(digests, st.text(), st.text(), st.text())
def test_each_field_changes_the_encoder_id(digest: bytes, preprocessing: str, precision: str, backend: str) -> None:
    def identity(digest: bytes, preprocessing: str, precision: str, backend: str) -> bytes:
        return encoder_id(vision_digest=digest, preprocessing=preprocessing, precision=precision, backend=backend)

    ids = {
        identity(digest, preprocessing, precision, backend),
        identity(digest + b"x", preprocessing, precision, backend),
        identity(digest, preprocessing + "x", precision, backend),
        identity(digest, preprocessing, precision + "x", backend),
        identity(digest, preprocessing, precision, backend + "x"),
    }
    assert len(ids) == 5


@given(digests, st.binary(max_size=64), digests)
def test_each_field_changes_the_visual_key(encoder: bytes, salt: bytes, image: bytes) -> None:
    keys = {
        visual_key(encoder_id=encoder, cache_salt=salt, image_sha256=image),
        visual_key(encoder_id=encoder[::-1] + b"x", cache_salt=salt, image_sha256=image),
        visual_key(encoder_id=encoder, cache_salt=salt + b"x", image_sha256=image),
        visual_key(encoder_id=encoder, cache_salt=salt, image_sha256=image + b"x"),
    }
    assert len(keys) == 4


@given(st.binary(max_size=8), st.binary(max_size=8), st.binary(max_size=8))
def test_salt_bytes_cannot_pass_for_other_parts(encoder: bytes, salt: bytes, image: bytes) -> None:
    # Tenants choose their salt. Without lengths, a chosen salt could give another tenant's key.
    if salt:
        shifted = visual_key(encoder_id=encoder + salt[:1], cache_salt=salt[1:], image_sha256=image)
        assert visual_key(encoder_id=encoder, cache_salt=salt, image_sha256=image) != shifted


def test_identities_of_released_checkpoints_stay() -> None:
    # A change here invalidates every cached entry and every manifest.
    full = ResamplerModelConfig(
        vision=VisionConfig(), resampler=ResamplerConfig(), language=LanguageConfig(eos_token_ids=(2,))
    )
    tensor = TensorDigest("bfloat16", (2, 3), bytes(32))
    assert (
        half_digest(full, "vision", {"a": tensor}).hex()
        == "cecd17bbf1db3dd56b2790a845733f046a5600a3dde61f807551c3f4057d0326"
    )
    assert (
        half_digest(full, "language", {"a": tensor}).hex()
        == "e0a11508e5cb41f59da3aebf430e5df703dfc0d7a1e08dea4264b9230692d9c5"
    )
    encoder = encoder_id(vision_digest=bytes(32), preprocessing="p/1", precision="bfloat16", backend="torch")
    assert encoder.hex() == "377de36c62018187724b74a432bd185ae29ce561cc9ee5772bdeca4464f8e566"
    assert (
        visual_key(encoder_id=encoder, cache_salt=b"", image_sha256=bytes(32)).hex()
        == "82ce65457e6dd6a3dc41428fc83f2753beb3badbf23afb33de59008a99f9cb92"
    )
