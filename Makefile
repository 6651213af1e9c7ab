# Everything a person or CI runs. `make demo` and `make test` set up what they need.
PYTHON ?= python3.11
BIN := .venv/bin
# Every script in benchmarks/, except the one that needs 13 GB of disk and memory (`make bench-full_size`).
BENCHMARKS := $(filter-out __init__ full_size,$(basename $(notdir $(wildcard benchmarks/*.py))))
CODE := tandem gateway vision_service language_service processing hosting checkpoint chassis demo benchmarks tests protos

.PHONY: demo test test-load lint format protos serve bench peers train-demo clean
.NOTPARALLEL: # tests and benchmarks measure: one at a time, whatever -j says

demo: .venv/ready  ## ask three questions about two images of a stack started for it
	$(BIN)/python -m demo.tour

serve: .venv/ready  ## the three services on loopback until Ctrl-C
	$(BIN)/tandem up

test: .venv/ready  ## every test but those under load, the quick ones first
	$(BIN)/pytest -m "not slow and not load"
	$(BIN)/pytest -m slow

test-load: .venv/ready  ## real processes under steady load, killed, cancelled and rolled back, for minutes
	$(BIN)/pytest -m load -s

lint: .venv/ready  ## style, types and the contract
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos

format: .venv/ready  ## put code and contract into the house style
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/buf format --write protos

protos: .venv/ready  ## the stubs in tandem/v1 from protos/
	$(BIN)/buf format --write protos
	$(BIN)/buf lint protos
	$(BIN)/python protos/generate.py

bench: .venv/ready $(BENCHMARKS:%=bench-%)  ## every benchmark, each within about a minute; the README's figures are of full runs

bench-%: .venv/ready
	$(BIN)/python -m benchmarks.$* --quick

train-demo: .venv/ready  ## train the demo model again (about an hour and a half on two cores)
	$(BIN)/python -m demo.train

peers: .peers/transformers/ready .peers/vllm/ready .peers/llama_cpp/ready  ## engines to compare ours with; -k where one does not install

clean:  ## forget the virtual environment and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first and by exact version: a range would bring the CUDA build where there is no GPU.
.venv/ready: pyproject.toml setup.py constraints.txt $(wildcard language_service/kernels/*.cpp language_service/kernels/*.h)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[gateway,stages,similar,traces,dev]'
	touch $@

# Whole lists of exact versions, dependencies not followed: vLLM names packages that come without a build for processors.
# llama.cpp is compiled for this processor, which takes half an hour on two cores.
.peers/%/ready: benchmarks/peers/%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF' \
		$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@
