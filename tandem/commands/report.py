"""The table of timings that follows an answer."""

from rich.table import Table
from rich.text import Text

from tandem.client import Answer, ImageReport

_ORIGINS = {
    "miss": "encoded",
    "gateway": "cached",
    "shared": "cached in Redis",
    "vision": "cached in the vision service",
    "in_flight": "encoded with another request",
}


def timing_table(answer: Answer) -> Table:
    """Return one row per stage: time and a remark."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("stage", style="bold")
    table.add_column("time", justify="right")
    table.add_column("remark", style="dim")
    timings, usage = answer.timings, answer.usage
    cached = f", {usage.cached_prompt_tokens} cached" if usage.cached_prompt_tokens else ""
    rows: list[tuple[str, float, str | Text]] = [
        ("prepare", timings.prepare_ms, ""),
        ("vision", timings.vision_ms, images_remark(answer.images)),
        ("queue", timings.queue_ms, ""),
        ("prefill", timings.prefill_ms, f"{usage.prompt_tokens} tokens, {usage.visual_tokens} visual{cached}"),
        ("first token", timings.first_token_ms, "from the request"),
        ("decode", timings.decode_ms, decode_remark(answer)),
        ("total", timings.total_ms, str(answer.release)),
    ]
    for stage, milliseconds, remark in rows:
        table.add_row(stage, f"{milliseconds:.1f} ms", remark)
    table.add_row("request", "", answer.request_id)
    return table


def images_remark(images: tuple[ImageReport, ...]) -> Text:
    """Return the origin of each image's visual tokens."""
    remark = Text(", ").join(
        Text.assemble(
            f"image {number} ",
            (origin(image), "green" if image.cached else "yellow"),
            f" ({tokens_of(image)}{image.ready_ms:.1f} ms)",
        )
        for number, image in enumerate(images, 1)
    )
    return remark if images else Text("no image")


def tokens_of(image: ImageReport) -> str:
    """Return the grid of an image's visual tokens, if any."""
    if image.grid is None:
        return ""
    rows, columns = image.grid
    return f"{columns} x {rows} = {image.num_visual_tokens} tokens, "


def origin(image: ImageReport) -> str:
    """Return the origin of an image's visual tokens in words.

    A level that only a newer server knows is returned unchanged.
    """
    if image.cache_level == "similar":
        # A gateway whose tenants share caches does not name the other image.
        return f"taken for {image.similar_sha256[:12] or 'another one'}, {image.similarity:.1%} similar"
    return _ORIGINS.get(image.cache_level, image.cache_level)


def decode_remark(answer: Answer) -> str:
    """Return the number of answer tokens and their rate."""
    tokens, decode_ms = answer.usage.completion_tokens, answer.timings.decode_ms
    counted = f"{tokens} token{'s' * (tokens != 1)}"
    if tokens > 1 and decode_ms > 0:
        # The prefill made the first token, so it does not count here.
        counted += f", {(tokens - 1) / decode_ms * 1000:.0f} tokens/s"
    remarks = {"length": ", cut at the limit", "filtered": ", ended by a filter"}
    return counted + remarks.get(answer.finish_reason, "")
