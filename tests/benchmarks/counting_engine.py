"""A fake engine that counts from a prompt's last token.

It stops if a prompt begins with 0, and loses the first token of a prompt that begins with 1.
"""

from pathlib import Path

from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve


def load(folder: Path) -> tuple[str, Complete]:
    print("output of a library")

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        recorder = Recorder(len(prompts))
        for step in range(1, num_tokens + 1):
            for index, prompt in enumerate(prompts):
                if prompt[0] == 0:
                    raise SystemExit("a prompt began with 0")
                if prompt[0] != step:
                    recorder.add(index, [prompt[-1] + step])
        return recorder.recording

    return f"counting engine, {folder}", complete


if __name__ == "__main__":
    serve(load)
