"""The server interceptor, tested through a real server."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from prometheus_client import REGISTRY

from chassis import errors, grpc_errors
from chassis.request_id import current_request_id
from chassis.settings import ServiceSettings
from tandem.v1 import gateway_pb2, language_pb2, model_pb2

ID = (("x-request-id", "abc-1.2_3"),)


def delta(text: str) -> gateway_pb2.GatewayGenerateResponse:
    return gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text=text))


async def stream_ids(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
    for _ in range(3):
        await asyncio.sleep(0)
        yield delta(current_request_id() or "none")


async def echo(self: Any, requests: Any, context: Any) -> AsyncIterator[Any]:
    async for message in requests:
        yield language_pb2.GenerateResponse(tokens=language_pb2.TokenChunk(token_ids=message.text.token_ids))


async def measure(self: Any, requests: Any, context: Any) -> Any:
    return gateway_pb2.PutImageResponse(num_bytes=sum([len(message.chunk) async for message in requests]))


async def count(self: Any, request: Any, context: Any) -> Any:
    return gateway_pb2.CountTokensResponse(prompt_tokens=len(request.messages))


def text(*token_ids: int) -> language_pb2.GenerateRequest:
    return language_pb2.GenerateRequest(text=language_pb2.TextSegment(token_ids=token_ids))


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """Return the error of an RPC of any kind."""

    async def finish() -> None:
        if hasattr(call, "__await__"):
            await call
        else:
            [_ async for _ in call]

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await finish()
    return caught.value


async def test_all_four_rpc_kinds_respond_and_return_the_request_id(serve: Any) -> None:
    run = await serve(
        gateway={"CountTokens": count, "Generate": stream_ids, "PutImage": measure}, language={"Generate": echo}
    )
    one = run.gateway.CountTokens(
        gateway_pb2.CountTokensRequest(messages=[gateway_pb2.Message(), gateway_pb2.Message()]), metadata=ID
    )
    assert (await one).prompt_tokens == 2
    down = run.gateway.Generate(gateway_pb2.GatewayGenerateRequest(), metadata=ID)
    assert [message.delta.text async for message in down] == ["abc-1.2_3"] * 3
    up = run.gateway.PutImage(
        iter([gateway_pb2.PutImageRequest(chunk=b"12"), gateway_pb2.PutImageRequest(chunk=b"3")]), metadata=ID
    )
    assert (await up).num_bytes == 3
    both = run.language.Generate(iter([text(1, 2), text(3)]), metadata=ID)
    assert [list(message.tokens.token_ids) async for message in both] == [[1, 2], [3]]
    for call in (one, down, up, both):
        assert (await call.initial_metadata())["x-request-id"] == "abc-1.2_3"


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129, 'x"}', "café"])
async def test_a_malformed_request_id_is_replaced(serve: Any, sent: str) -> None:
    """A request id must never break a log line."""
    run = await serve(gateway={"CountTokens": count})
    metadata = (
        (("x-request-id", sent.encode("ascii", "replace").decode()),)
        if sent.isascii()
        else (("x-request-id", "caf:e"),)
    )
    call = run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), metadata=metadata)
    await call
    assert len((await call.initial_metadata())["x-request-id"]) == 32


@pytest.mark.parametrize("kind", errors.TandemError.__subclasses__())
async def test_the_client_gets_the_error_with_all_its_details(serve: Any, kind: type[errors.TandemError]) -> None:
    async def fail(self: Any, request: Any, context: Any) -> Any:
        raise kind("Schade, 遗憾.", reason="WHY_NOT", field="messages[0]", retry_after_s=1.5, metadata={"limit": "3"})

    run = await serve(gateway={"CountTokens": fail})
    raised = await failure(run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), metadata=ID))
    error = grpc_errors.from_rpc_error(raised)
    assert type(error) is kind
    assert (error.message, error.reason, error.field) == ("Schade, 遗憾.", "WHY_NOT", "messages[0]")
    assert (error.retry_after_s, error.metadata) == (1.5, {"limit": "3"})
    trailing: Any = raised.trailing_metadata()
    assert trailing["x-request-id"] == "abc-1.2_3"


async def test_an_error_in_a_stream_follows_the_sent_messages(serve: Any) -> None:
    async def fail(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        yield delta("a")
        raise errors.DataLoss("Broken.", reason="BROKEN")

    run = await serve(gateway={"Generate": fail})
    call = run.gateway.Generate(gateway_pb2.GatewayGenerateRequest())
    assert (await call.read()).delta.text == "a"
    assert grpc_errors.from_rpc_error(await failure(call.read())).reason == "BROKEN"


@pytest.mark.parametrize("method", ["CountTokens", "Generate", "PutImage"])
async def test_a_bug_is_reported_by_its_request_id_only(serve: Any, log_lines: Any, method: str) -> None:
    """The message can be secret and belongs in the log."""

    async def broken(self: Any, request: Any, context: Any) -> Any:
        raise RuntimeError("secret")

    async def broken_stream(self: Any, request: Any, context: Any) -> AsyncIterator[Any]:
        yield delta("a")
        raise RuntimeError("secret")

    run = await serve(gateway={method: broken_stream if method == "Generate" else broken})
    call = {
        "CountTokens": lambda: run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), metadata=ID),
        "Generate": lambda: run.gateway.Generate(gateway_pb2.GatewayGenerateRequest(), metadata=ID),
        "PutImage": lambda: run.gateway.PutImage(iter([gateway_pb2.PutImageRequest()]), metadata=ID),
    }[method]()
    raised = await failure(call)
    assert raised.code() == grpc.StatusCode.INTERNAL
    assert "abc-1.2_3" in str(raised.details())
    assert "secret" not in str(raised)
    lines = log_lines()
    assert any("RuntimeError: secret" in line.get("exception", "") for line in lines)
    assert {line["request_id"] for line in lines if line["event"] in ("rpc", "unexpected error")} == {"abc-1.2_3"}


async def test_a_cancellation_that_did_not_come_from_the_client_is_a_bug(serve: Any) -> None:
    """Without a response, the client would wait forever."""

    async def broken(self: Any, request: Any, context: Any) -> Any:
        other = asyncio.ensure_future(asyncio.sleep(60))
        other.cancel()
        await other

    run = await serve(gateway={"CountTokens": broken})
    raised = await failure(run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), timeout=30))
    assert raised.code() == grpc.StatusCode.INTERNAL


async def test_a_handler_may_abort_the_rpc_itself(serve: Any, log_lines: Any) -> None:
    async def abort(self: Any, request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.OUT_OF_RANGE, "Too far.")

    run = await serve(gateway={"CountTokens": abort})
    raised = await failure(run.gateway.CountTokens(gateway_pb2.CountTokensRequest()))
    assert (raised.code(), raised.details()) == (grpc.StatusCode.OUT_OF_RANGE, "Too far.")
    assert [line["code"] for line in log_lines() if line["event"] == "rpc"] == ["OUT_OF_RANGE"]


# A string field of each request (routing_key is number 4, tag is number 1) with one byte that is not UTF-8.
NOT_UTF8 = {"/tandem.v1.Gateway/Generate": b"\x22\x01\xff", "/tandem.v1.VisionService/GetModel": b"\x0a\x01\xff"}


@pytest.mark.parametrize("data", [None, b"\xff", b"\x0a\x7f"], ids=["not UTF-8", "not a tag", "cut off"])
@pytest.mark.parametrize("path", NOT_UTF8)
async def test_an_unparsable_request_is_an_invalid_argument(serve: Any, path: str, data: bytes | None) -> None:
    async def get_model(self: Any, request: Any, context: Any) -> Any:
        return model_pb2.GetModelResponse()

    run = await serve(gateway={"Generate": stream_ids}, vision={"GetModel": get_model})
    method = run.channel.unary_unary if path.endswith("GetModel") else run.channel.unary_stream
    error = grpc_errors.from_rpc_error(await failure(method(path)(NOT_UTF8[path] if data is None else data)))
    assert isinstance(error, errors.InvalidArgument)
    assert error.reason == "BAD_MESSAGE"


@pytest.mark.parametrize("path", ["/tandem.v1.Gateway/PutImage", "/tandem.v1.LanguageService/Generate"])
async def test_an_unparsable_message_of_a_client_stream_is_an_invalid_argument(serve: Any, path: str) -> None:
    run = await serve(gateway={"PutImage": measure}, language={"Generate": echo})
    method = run.channel.stream_unary if path.endswith("PutImage") else run.channel.stream_stream
    error = grpc_errors.from_rpc_error(await failure(method(path)(iter([b"", b"\x0a\x7f"]))))
    assert isinstance(error, errors.InvalidArgument)
    assert error.reason == "BAD_MESSAGE"


async def test_a_message_above_the_limit_is_refused_and_the_next_rpc_works(serve: Any) -> None:
    run = await serve(gateway={"PutImage": measure}, settings=ServiceSettings(max_message_bytes=1000))
    small, large = (gateway_pb2.PutImageRequest(chunk=bytes(size)) for size in (900, 1001))
    raised = await failure(run.gateway.PutImage(iter([large])))
    assert raised.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await run.gateway.PutImage(iter([small, small]))).num_bytes == 1800


async def test_a_message_that_grpc_refuses_is_counted_and_logged(serve: Any, log_lines: Any) -> None:
    """The handler never sees it."""
    run = await serve(gateway={"CountTokens": count}, settings=ServiceSettings(max_message_bytes=1000))
    labels = {"method": "tandem.v1.Gateway/CountTokens"}

    def num_unread() -> float:
        return REGISTRY.get_sample_value("tandem_rpc_unread_total", labels) or 0.0

    before = num_unread()
    part = gateway_pb2.Part(image=gateway_pb2.Image(data=bytes(2000)))
    large = gateway_pb2.CountTokensRequest(messages=[gateway_pb2.Message(parts=[part])])
    error = await failure(run.gateway.CountTokens(large, metadata=ID))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    for _ in range(3):
        await run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), metadata=ID)
    assert num_unread() == before + 1
    [line] = [line for line in log_lines() if line["event"].startswith("request not received")]
    assert (line["method"], line["request_id"]) == (labels["method"], "abc-1.2_3")


async def test_an_unknown_method_is_unimplemented(serve: Any) -> None:
    run = await serve()
    raised = await failure(run.channel.unary_unary("/tandem.v1.Gateway/Nothing")(b""))
    assert raised.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_a_missing_method_is_unimplemented_but_a_raised_not_implemented_error_is_a_bug(serve: Any) -> None:
    async def broken(self: Any, request: Any, context: Any) -> Any:
        raise NotImplementedError

    run = await serve(gateway={"CountTokens": broken})
    unwritten = await failure(run.gateway.ListModels(gateway_pb2.GatewayListModelsRequest()))
    assert unwritten.code() == grpc.StatusCode.UNIMPLEMENTED
    assert (await failure(run.gateway.CountTokens(gateway_pb2.CountTokensRequest()))).code() == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("how", ["cancel", "deadline", "disconnect"])
async def test_a_client_that_leaves_frees_the_handlers_resources(serve: Any, log_lines: Any, how: str) -> None:
    """Its `finally` must run at once, not at garbage collection."""
    freed = asyncio.Event()

    async def endless(self: Any, requests: Any, context: Any) -> AsyncIterator[Any]:
        try:
            while True:
                yield language_pb2.GenerateResponse()
                await asyncio.sleep(0.001)
        finally:
            freed.set()

    run = await serve(language={"Generate": endless})
    call = run.language.Generate(timeout=2 if how == "deadline" else None)
    await call.write(text(1))
    await call.read()
    if how == "cancel":
        call.cancel()
    elif how == "disconnect":
        await run.channel.close()
    await asyncio.wait_for(freed.wait(), 30)
    await asyncio.sleep(0.05)
    codes = [line["code"] for line in log_lines() if line["event"] == "rpc"]
    assert codes == ["DEADLINE_EXCEEDED" if how == "deadline" else "CANCELLED"]


async def test_each_rpc_is_logged_in_one_line(serve: Any, log_lines: Any) -> None:
    async def refuse(self: Any, request: Any, context: Any) -> Any:
        raise errors.ResourceExhausted("Full.", reason="QUEUE_FULL", retry_after_s=1)

    run = await serve(gateway={"CountTokens": refuse, "Generate": stream_ids})
    await failure(run.gateway.CountTokens(gateway_pb2.CountTokensRequest(), metadata=ID))
    [_ async for _ in run.gateway.Generate(gateway_pb2.GatewayGenerateRequest(), metadata=ID)]
    refused, answered = (line for line in log_lines() if line["event"] == "rpc")
    assert refused["method"] == "tandem.v1.Gateway/CountTokens"
    assert (refused["code"], refused["reason"], refused["service"]) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL", "test")
    assert (answered["code"], answered["request_id"]) == ("OK", "abc-1.2_3")
    assert answered["duration_ms"] >= 0
    assert list(answered)[:5] == ["timestamp", "level", "event", "service", "request_id"]


async def test_concurrent_rpcs_keep_their_own_request_ids(serve: Any) -> None:
    run = await serve(gateway={"Generate": stream_ids})

    async def ask(request_id: str) -> list[str]:
        call = run.gateway.Generate(gateway_pb2.GatewayGenerateRequest(), metadata=(("x-request-id", request_id),))
        return [message.delta.text async for message in call]

    names = [f"request-{number}" for number in range(20)]
    assert await asyncio.gather(*map(ask, names)) == [[name] * 3 for name in names]
