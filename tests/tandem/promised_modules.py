"""Modules that must load with some extras alone."""

# Modules that need more than the extra `stages`, by the further extras.
FURTHER = {
    "onnxruntime": ("vision_service.backends.onnxruntime_backend",),
    "openvino": ("vision_service.backends.openvino_backend",),
    "triton": tuple(f"vision_service.backends.triton_{name}" for name in ("backend", "errors", "memory")),
    "export": tuple(f"vision_service.exporting.{name}" for name in ("onnx_file", "onnx_target", "tensorrt")),
    "export,openvino": ("vision_service.exporting.openvino_target",),
    "export,triton": ("vision_service.exporting.triton_repository",),
}
# Modules whose libraries no extra brings: they run in a Triton server, where torch brings its compiler for GPUs, or in
# the environment of vLLM.
ELSEWHERE = (
    "vision_service.exporting.triton_model",
    "language_service.kernels.triton_attention",
    "language_service.kernels.triton_chunks",
    "language_service.kernels.triton_kernels",
    *(
        f"language_service.engine.{name}"
        for name in ("vllm", "vllm_client", "vllm_follower", "vllm_generation", "vllm_opening")
    ),
)
# Modules that must load with some extras alone. "" is the plain install, "name.*" a package with all its modules but
# those of `FURTHER` and `ELSEWHERE`.
PROMISED = {
    "": ("tandem.client", "tandem.commands", "checkpoint.inspection", "checkpoint.listing", "checkpoint.verification"),
    "traces": ("tandem.client", "chassis.otlp"),
    "processor": ("processing.*", "tandem.processor"),
    "gateway": ("gateway.*", "chassis.server"),
    "http": ("http_gateway.*", "chassis.process"),
    "stages": ("vision_service.*", "language_service.*", "checkpoint.*"),
    "similar,stages": ("vision_service.*", "faiss"),
    "gateway,stages": ("tandem.*",),
    **{f"stages,{extras}": modules for extras, modules in FURTHER.items()},
}
