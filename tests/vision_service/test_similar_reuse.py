"""Similar images share visual tokens within one tenant and encoder."""

import hashlib

import pytest

from chassis.errors import NotFound
from tests.vision_service.gated_backend import bench, make_encoder, photo, png, request
from vision_service.image_encoder import Source


async def test_another_file_of_the_same_photo_gets_its_tokens_as_similar() -> None:
    async with bench(threshold=0.95) as it:
        first = await it.ask(photo())
        copy = await it.ask(photo("JPEG", quality=70))
        assert (copy.source, copy.tokens) == (Source.SIMILAR, first.tokens)
        assert copy.similar is not None
        assert copy.similar.image_sha256 == hashlib.sha256(photo()).digest()
        assert 0.95 <= copy.similar.similarity <= 1
        # Equal keys mean equal embeddings, so the copy's own key gets no entry.
        assert copy.visual_key == first.visual_key
        with pytest.raises(NotFound):
            await it.ask(b"", sha256=hashlib.sha256(photo("JPEG", quality=70)).digest())
        assert (await it.ask(photo(seed=1))).source is Source.ENCODED


async def test_tenants_and_encoders_never_share_similar_images() -> None:
    async with bench(threshold=0.5) as it:
        await it.ask(photo(), cache_salt=b"one")
        assert (await it.ask(photo("BMP"), cache_salt=b"other")).source is Source.ENCODED
        encoder = make_encoder(it.backend, it.resources, digest=bytes([1]) * 32)
        assert (await encoder.encode(request(photo("BMP"), cache_salt=b"one"))).source is Source.ENCODED
        await encoder.close()


async def test_a_similar_image_with_evicted_tokens_does_not_answer() -> None:
    async with bench(threshold=0.95, cache_bytes=600) as it:  # one entry
        await it.ask(photo())
        await it.ask(png("red"))
        copy = await it.ask(photo("BMP"))
        assert (copy.source, it.backend.batches) == (Source.ENCODED, [1, 1, 1])
        assert (await it.ask(photo("JPEG"))).source is Source.SIMILAR  # to the copy, which is cached


async def test_similarity_is_off_by_default() -> None:
    async with bench() as it:
        await it.ask(photo())
        assert (await it.ask(photo("BMP"))).source is Source.ENCODED
