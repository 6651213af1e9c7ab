"""An engine that counts on from the last token of a prompt, and ends where a prompt begins with 0."""

from pathlib import Path

from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve


def load(folder: Path) -> tuple[str, Complete]:
    print("a library's words on standard output")

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        recorder = Recorder(len(prompts))
        for step in range(1, num_tokens + 1):
            for index, prompt in enumerate(prompts):
                if prompt[0] == 0:
                    raise SystemExit("a prompt began with 0")
                if prompt[0] != step:  # one that begins with 1 misses its first token
                    recorder.add(index, [prompt[-1] + step])
        return recorder.recording

    return f"counts, told {folder}", complete


if __name__ == "__main__":
    serve(load)
