"""Prometheus reads the metrics, others do not, and nobody keeps it out."""

import asyncio
import ssl
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

import chassis.metrics_server
from chassis.errors import FailedPrecondition
from chassis.metrics_server import MAX_CONNECTIONS, serve_metrics
from chassis.settings import ProcessSettings

TOKEN = "a token of many characters"


async def read(port: int, *, tls: ssl.SSLContext | None = None, authorization: str | None = None) -> tuple[int, str]:
    """Return the status and the page."""

    def get() -> tuple[int, str]:
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}/metrics"
        request = urllib.request.Request(url, headers={"authorization": authorization} if authorization else {})
        openers = [urllib.request.ProxyHandler({}), *([urllib.request.HTTPSHandler(context=tls)] if tls else [])]
        try:
            with urllib.request.build_opener(*openers).open(request, timeout=60) as page:
                return page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_the_page_has_the_metrics_of_the_process() -> None:
    async with serve_metrics(ProcessSettings()) as port:
        status, page = await read(port)
    assert status == 200
    assert "# TYPE tandem_rpc_seconds histogram" in page
    assert ProcessSettings().metrics_host == "127.0.0.1"


async def test_metrics_can_be_off() -> None:
    async with serve_metrics(ProcessSettings(metrics_port=-1)) as port:
        assert port == -1


async def test_readers_need_the_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    async with serve_metrics(ProcessSettings(metrics_token=file)) as port:
        assert (await read(port, authorization=f"Bearer {TOKEN}"))[0] == 200
        for wrong in (None, "Bearer other", TOKEN):
            status, page = await read(port, authorization=wrong)
            assert (status, "tandem_rpc" in page) == (401, False)


@pytest.mark.parametrize("content", [None, "short", b"\xff" * 40])
async def test_a_token_that_protects_nothing_is_refused(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(FailedPrecondition) as caught:
        async with serve_metrics(ProcessSettings(metrics_token=file)):
            pass
    assert caught.value.reason == "BAD_TOKEN"


async def test_metrics_are_encrypted_on_request(certificates: Any) -> None:
    cert, key = certificates.server
    async with serve_metrics(ProcessSettings(tls_cert=cert, tls_key=key, metrics_tls=True)) as port:
        status, _ = await read(port, tls=ssl.create_default_context(cafile=certificates.ca))
    assert status == 200
    with pytest.raises(ValueError, match="--metrics-tls needs a certificate"):
        ProcessSettings(metrics_tls=True)


async def test_connections_that_send_nothing_keep_no_reader_out_and_take_no_thread() -> None:
    async with serve_metrics(ProcessSettings()) as port:
        await read(port)  # starts the threads that read and render
        num_threads = threading.active_count()
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4 * MAX_CONNECTIONS)]
        try:
            assert (await read(port))[0] == 200
            assert threading.active_count() <= num_threads + 1
            ended = [asyncio.create_task(reader.read()) for reader, _ in idle]
            done, _open = await asyncio.wait(ended, timeout=1)
            assert len(done) >= 3 * MAX_CONNECTIONS  # the oldest made room
        finally:
            for _, writer in idle:
                writer.close()


async def test_a_connection_does_not_outlive_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chassis.metrics_server, "CONNECTION_S", 0.2)
    async with serve_metrics(ProcessSettings()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()


async def test_endless_headers_are_refused() -> None:
    async with serve_metrics(ProcessSettings()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 40_000)
        async with asyncio.timeout(60):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400")
        writer.close()
