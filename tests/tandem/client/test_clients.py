"""Both clients against a real stack."""

import asyncio
import hashlib
import io
import math
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image as PillowImage

from tandem import AsyncClient, Client, GenerateOptions, Image, assistant, system, user
from tandem.errors import Cancelled, DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from tandem.stack.stack import Stack


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.address, timeout_s=60) as client:
        yield client


@pytest.fixture
async def async_client(stack: Stack) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(stack.address, timeout_s=60) as client:
        yield client


def num_ended(stack: Stack, service: str, code: str) -> float:
    """Return how many Generate calls ended with a status."""
    with urllib.request.urlopen(stack.metrics_url(service)) as page:
        lines = page.read().decode().splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith("tandem_rpc_requests_total{") and "/Generate" in line and f'code="{code}"' in line
    )


def waiter_for_end(stack: Stack, code: str) -> Callable[[], None]:
    """Return a function that waits until a request ends.

    Gateway and language service must both count one more call that ended with `code`.
    """
    before = {service: num_ended(stack, service, code) for service in ("gateway", "language")}

    def wait() -> None:
        deadline = time.monotonic() + 60
        while any(num_ended(stack, service, code) <= count for service, count in before.items()):
            assert time.monotonic() < deadline, f"no request ended with {code}"
            time.sleep(0.05)

    return wait


def test_the_pieces_of_a_stream_are_the_answer(client: Client, image_files: tuple[Path, Path]) -> None:
    stream = client.generate("What is this?", images=[image_files[0]], max_tokens=24, temperature=1, seed=5)
    pieces = list(stream)
    assert "".join(pieces) == stream.final.text
    assert len(pieces) > 1
    assert stream.final.request_id == stream.request_id
    assert stream.final.usage.completion_tokens == 24
    assert stream.final.finish_reason == "length"
    assert str(stream.final.release) == "tiny-v1.0.0"


async def test_both_clients_give_the_same_answer(
    client: Client, async_client: AsyncClient, image_files: tuple[Path, Path]
) -> None:
    conversation = [
        system("Be brief."),
        user(Image(image_files[0]), "What is this?"),
        assistant("A bag."),
        user("And this?", Image(image_files[1])),
    ]
    one = client.ask(conversation, max_tokens=12, temperature=1, seed=7, num_logprobs=2)
    stream = async_client.generate(conversation, max_tokens=12, temperature=1, seed=7, num_logprobs=2)
    text = "".join([piece async for piece in stream])
    other = stream.final
    assert (one.text, one.usage.completion_tokens, one.finish_reason) == (
        text,
        other.usage.completion_tokens,
        other.finish_reason,
    )
    assert one.release == other.release
    assert [image.sha256 for image in one.images] == [image.sha256 for image in other.images]
    assert [entry.chosen.token_id for entry in one.logprobs] == [entry.chosen.token_id for entry in other.logprobs]
    assert len(one.logprobs) == one.usage.completion_tokens
    assert client.models() == await async_client.models()
    assert client.count_tokens(conversation) == await async_client.count_tokens(conversation)
    token_ids = client.tokenize(conversation)
    assert token_ids == await async_client.tokenize(conversation)
    assert len(token_ids) == one.usage.prompt_tokens
    for text in ("What is this?", "这是什么？"):
        assert client.detokenize(client.tokenize(text)) == text
        assert await async_client.detokenize(await async_client.tokenize(text)) == text


def test_path_bytes_and_digest_of_an_image_are_encoded_once(client: Client) -> None:
    file = io.BytesIO()
    PillowImage.new("RGB", (31, 33), "green").save(file, "PNG")
    digest = client.put_image(file.getvalue())
    assert digest == hashlib.sha256(file.getvalue()).hexdigest()
    first = client.ask("What?", images=[digest], max_tokens=4)
    second = client.ask("What?", images=[file.getvalue()], max_tokens=4)
    assert [first.images[0].cached, second.images[0].cached] == [False, True]
    assert first.images[0].sha256 == second.images[0].sha256 == digest
    assert first.text == second.text


async def test_an_answer_is_continued_where_it_stopped(
    client: Client, async_client: AsyncClient, image_files: tuple[Path, Path]
) -> None:
    question = user(Image(image_files[0]), "Describe it.")
    whole = client.ask([question], regex="[a-z ]{24}")
    begun = [question, assistant(whole.text[:10])]
    assert client.ask(begun, continue_answer=True, regex="[a-z ]{14}").text == whole.text[10:]
    assert (await async_client.ask(begun, continue_answer=True, regex="[a-z ]{14}")).text == whole.text[10:]
    with pytest.raises(InvalidArgument, match="The last message must"):
        client.ask(begun)


def test_an_odd_answer_goes_back_as_history(client: Client) -> None:
    empty = client.ask("What?", regex="a{9}", stop="a")
    control = client.ask("What?", regex="[\x01-\x1f]{3}")
    assert (empty.text, control.text.isprintable(), len(control.text)) == ("", False, 3)
    for answer in (empty, control):
        client.ask([user("What?"), assistant(answer.text), user("And now?")], max_tokens=2)


def test_a_client_made_before_its_loop_works_in_it(stack: Stack) -> None:
    client = AsyncClient(stack.address, timeout_s=60)

    async def ask() -> int:
        async with client:
            return (await client.ask("What?", max_tokens=3)).usage.completion_tokens

    assert asyncio.run(ask()) == 3


async def test_an_image_of_many_chunks_is_uploaded_complete(
    client: Client, async_client: AsyncClient, tmp_path: Path
) -> None:
    path = tmp_path / "noise.png"
    PillowImage.effect_noise((1800, 1800), 80).save(path)
    assert path.stat().st_size > 2 * 1024 * 1024
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert client.put_image(path) == await async_client.put_image(str(path)) == digest


def test_count_tokens_agrees_with_the_answer(client: Client, image_files: tuple[Path, Path]) -> None:
    count = client.count_tokens("What is this?", images=image_files, system="Be brief.")
    answer = client.ask("What is this?", images=image_files, system="Be brief.", max_tokens=1)
    assert (count.prompt_tokens, count.visual_tokens) == (answer.usage.prompt_tokens, answer.usage.visual_tokens)
    assert count.remaining_tokens == client.models()[0].context_length - count.prompt_tokens


def test_an_answer_is_rated_once(client: Client) -> None:
    answer = client.ask("What is it?", max_tokens=2)
    assert [client.rate(answer.request_id, -1.0, "too-short") for _ in range(2)] == [True, False]
    with pytest.raises(NotFound, match="No answer of the last hour"):
        client.rate("another", 1.0)


async def test_an_answer_is_rated_with_asyncio(async_client: AsyncClient) -> None:
    answer = await async_client.ask("What is it?", max_tokens=2)
    assert await async_client.rate(answer.request_id, 0.5)


def test_models_describes_the_release(client: Client) -> None:
    [info] = client.models()
    assert (str(info.release), info.ready, info.is_default) == ("tiny-v1.0.0", True, True)
    assert (info.vision.state, info.language.precision, info.num_visual_tokens) == ("ready", "float32", 32)
    assert info.vision.num_parameters > 0 < info.language.num_parameters


def test_leaving_the_loop_cancels_the_request(client: Client, stack: Stack) -> None:
    wait_until_cancelled = waiter_for_end(stack, "CANCELLED")
    for _ in client.generate("Go on for long", max_tokens=900, ignore_eos=True):
        break
    wait_until_cancelled()


async def test_leaving_the_loop_cancels_the_request_with_asyncio(async_client: AsyncClient, stack: Stack) -> None:
    wait_until_cancelled = waiter_for_end(stack, "CANCELLED")
    async for _ in async_client.generate("Go on for long", max_tokens=900, ignore_eos=True):
        break
    await asyncio.to_thread(wait_until_cancelled)


async def test_a_closed_stream_raises_cancelled(client: Client, async_client: AsyncClient) -> None:
    stream = client.generate("Go on for long", max_tokens=900, ignore_eos=True)
    pieces = iter(stream)
    next(pieces)
    stream.close()
    with pytest.raises(Cancelled):
        list(pieces)
    async_stream = async_client.generate("Go on for long", max_tokens=900, ignore_eos=True)
    async_pieces = aiter(async_stream)
    await anext(async_pieces)
    async_stream.close()
    with pytest.raises(Cancelled):
        [piece async for piece in async_pieces]


async def test_cancelling_the_task_raises_cancelled_error(async_client: AsyncClient) -> None:
    """Otherwise `asyncio.timeout` and task groups would break."""
    began = asyncio.Event()

    async def read() -> None:
        async for _ in async_client.generate("Go on for long", max_tokens=900, ignore_eos=True):
            began.set()

    task = asyncio.create_task(read())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_closing_a_client_cancels_its_calls_and_refuses_new_ones(stack: Stack) -> None:
    """With asyncio, gRPC ends them like a cancelled task."""
    async_client, client = AsyncClient(stack.address), Client(stack.address)
    async_pieces = aiter(async_client.generate("Go on for long", max_tokens=900, ignore_eos=True))
    pieces = iter(client.generate("Go on for long", max_tokens=900, ignore_eos=True))
    await anext(async_pieces)
    next(pieces)
    await async_client.close()
    client.close()
    with pytest.raises(Cancelled):
        [piece async for piece in async_pieces]
    with pytest.raises(Cancelled):
        list(pieces)
    with pytest.raises(FailedPrecondition, match="The client is closed"):
        await async_client.models()
    with pytest.raises(FailedPrecondition, match="The client is closed"):
        client.generate("What?")


def test_the_final_answer_needs_the_whole_stream(client: Client) -> None:
    with client.generate("What?", max_tokens=4) as stream, pytest.raises(RuntimeError, match="to its end"):
        _ = stream.final


async def test_errors_are_typed_and_carry_the_request_id(client: Client, async_client: AsyncClient) -> None:
    with pytest.raises(InvalidArgument) as empty:
        client.ask("", request_id="empty-1")
    assert empty.value.request_id == "empty-1"
    assert empty.value.field
    with pytest.raises(NotFound) as unknown:
        client.ask("What?", images=["ab" * 32])
    assert unknown.value.request_id
    with pytest.raises(InvalidArgument) as broken:
        await async_client.ask("What?", images=[b"no image"], request_id="broken-1")
    assert broken.value.request_id == "broken-1"
    with pytest.raises(NotFound):
        await async_client.ask("What?", release="other-v1.0.0")
    assert client.ask("What?", max_tokens=2).usage.completion_tokens == 2  # the next request works


async def test_an_unreachable_gateway_is_named(unused_tcp_port: int) -> None:
    address = f"127.0.0.1:{unused_tcp_port}"
    with pytest.raises(Unavailable, match=f"Cannot reach a gateway at {address}") as error, Client(address) as client:
        client.models()
    assert error.value.reason == "UNREACHABLE"
    async with AsyncClient(address) as async_client:
        with pytest.raises(Unavailable, match="Cannot reach a gateway"):
            await async_client.ask("What?")


@pytest.mark.parametrize("timeout_s", [None, 1e12, math.inf])
def test_a_huge_timeout_does_not_expire_at_once(unused_tcp_port: int, timeout_s: float | None) -> None:
    with Client(f"127.0.0.1:{unused_tcp_port}", timeout_s=timeout_s) as client, pytest.raises(Unavailable):
        client.models()


async def test_the_timeout_ends_the_request(client: Client, async_client: AsyncClient) -> None:
    options = GenerateOptions(max_tokens=900, ignore_eos=True, timeout_s=0.2)
    with pytest.raises(DeadlineExceeded):
        client.ask("Go on for long", **options)
    with pytest.raises(DeadlineExceeded):
        await async_client.ask("Go on for long", **options)
