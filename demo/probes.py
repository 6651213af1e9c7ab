"""Write the probes of the demo's releases.

    python -m demo.probes --out probes.jsonl
    tandem probes add tandem-demo-v1.1.0 probes.jsonl

Languages and topics take turns. The images come from seeds that neither training nor the evaluation uses. They are
WebP files of about 5 KB. Their PNG files would have 65 KB, most of it grain.
"""

import argparse
import base64
import hashlib
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

from demo.drawing import draw
from demo.questions import LANGUAGES, TOPICS, Conversation, ask
from demo.scenes import PROBE_SEEDS, make_scene

NUM_PROBES = 400
PROBES_PER_IMAGE = 4
MAX_TOKENS = 96  # more than the longest right answer
_WEBP_QUALITY = 80


def probe_lines(num_probes: int = NUM_PROBES) -> Iterator[str]:
    """Yield the lines: each image, then its probes."""
    for number in range(num_probes):
        seed = PROBE_SEEDS[number // PROBES_PER_IMAGE]
        if number % PROBES_PER_IMAGE == 0:
            image = to_webp(seed)
            yield json.dumps({"image": base64.b64encode(image).decode()})
        # Topics advance with each pair of languages, so every topic has both.
        language = LANGUAGES[number % len(LANGUAGES)]
        topic = TOPICS[number // len(LANGUAGES) % len(TOPICS)]
        conversation = ask(make_scene(seed), random.Random(f"probe {seed} {number}"), language, topic)
        probe = {
            "id": f"{language[:2]}-{topic.replace(' ', '-')}-{number:03}",
            "slices": {"language": language, "topic": topic},
            "judge": {"exact": conversation.turns[-1].answer},
            "max_tokens": MAX_TOKENS,
            "messages": _messages(conversation, image),
        }
        yield json.dumps(probe, ensure_ascii=False)


def write_probes(out: Path) -> None:
    """Write all probes to a file."""
    out.write_text("".join(f"{line}\n" for line in probe_lines()), encoding="utf-8")


def to_webp(scene_seed: int) -> bytes:
    """Draw the scene of a seed as a WebP file."""
    file = io.BytesIO()
    draw(make_scene(scene_seed)).save(file, "WEBP", quality=_WEBP_QUALITY, method=6)
    return file.getvalue()


def _messages(conversation: Conversation, image: bytes) -> list[dict[str, object]]:
    """Return the turns. Earlier answers are the right ones."""
    messages: list[dict[str, object]] = []
    for turn in conversation.turns:
        parts: list[dict[str, str]] = [{"type": "text", "text": turn.question}]
        if not messages:
            parts.insert(0, {"type": "image", "sha256": hashlib.sha256(image).hexdigest()})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": turn.answer})
    return messages[:-1]


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m demo.probes", description="Write the probes of the demo.")
    parser.add_argument("--out", type=Path, default=Path("probes.jsonl"), help="file to write (default: %(default)s)")
    arguments = parser.parse_args()
    write_probes(arguments.out)


if __name__ == "__main__":
    main()
