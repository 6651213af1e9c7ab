# Everything a person or CI runs. `make demo` and `make test` set up what they need.
BIN := .venv/bin
# The first of these that can make a virtual environment. `make PYTHON=... test` takes another.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import ensurepip, venv' 2>/dev/null && echo $$python && break; done)
# Torch for CPUs: PyPI's build for Linux brings CUDA, which is gigabytes. `make TORCH_INDEX= test` takes PyPI's.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
# Runs `make gpu-check`: python3 of a machine with a GPU, or the .venv where there is one.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
# Markers of tests that `make test` leaves out. Each has a target test-MARKER.
SEPARATE := load hostile envoy k8s images gpu kernels tensorrt triton vllm http
# Files of tests run in this many processes. Tests of one file share what they start, so a process runs whole files.
TEST_PROCESSES ?= 2
SIDE_BY_SIDE = -n $(TEST_PROCESSES) --dist loadfile
# Every script in benchmarks/, except the one that needs 13 GB of disk and memory (`make bench-full_size`).
BENCHMARKS := $(filter-out __init__ full_size,$(basename $(notdir $(wildcard benchmarks/*.py))))
CODE := tandem gateway http_gateway vision_service language_service processing hosting checkpoint chassis demo benchmarks tests protos

.PHONY: help demo demo-canary serve images test $(SEPARATE:%=test-%) lint format protos bench lock sbom gpu-wheels gpu-check train-demo peers vllm-env clean
.NOTPARALLEL: # tests and benchmarks measure: one at a time, whatever -j says

help:  ## show this list
	@sed -nE 's/^([a-z0-9-]+)(%?):[^#]*## +(.*)/\1|\2|\3/p' Makefile | while IFS='|' read -r name any text; do \
		printf 'make %-15s %s\n' "$$name$${any:+NAME}" "$$text"; done

demo: .venv/ready  ## start a stack and ask it three questions about two images
	$(BIN)/python -m demo.tour

demo-canary: .venv/ready  ## roll out a worse and a better release under traffic, in a minute or two
	$(BIN)/python -m demo.canary

serve: .venv/ready  ## run the services and the HTTP door on this machine until Ctrl-C
	$(BIN)/tandem up --http 8080

test: .venv/ready  ## run the tests, the quick ones first; with COVERAGE=1 also hold the coverage floor
	$(BIN)/pytest $(SIDE_BY_SIDE) $(if $(COVERAGE),--cov --cov-report=) -m "not slow $(SEPARATE:%=and not %)"
	$(if $(COVERAGE),$(BIN)/coverage report --skip-covered)
	$(BIN)/pytest $(SIDE_BY_SIDE) -m "slow $(SEPARATE:%=and not %)"
	@echo "Left out, each by a target of its own: $(SEPARATE:%=test-%)"

images:  ## build the images with docker, podman or buildah; VARIANT=cuda for GPUs
	images/build

test-images: .venv/ready  ## build the images and run each in a container, alone
	TANDEM_TESTS=tests/images tests/k8s/run -m images

test-k8s: .venv/ready  ## run the Kubernetes manifests in containers under load; with SHORT=1 the main scenarios
	tests/k8s/run -m "k8s$(if $(SHORT), and not slow)"

test-load: .venv/ready  ## run the load tests: real processes that are killed and rolled back, for minutes
	$(BIN)/pytest -m load -s

test-hostile: .venv/ready test-envoy  ## attack each service as a stranger could; with SHORT=1 in two minutes
	$(BIN)/pytest tests/hostile -m "hostile and not envoy$(if $(SHORT), and not slow)"

test-envoy: .venv/ready  ## put Envoy in front of a gateway, and attack it
	tests/hostile/envoy/run -m envoy

test-gpu: .venv/ready  ## run the tests that need a GPU
	$(BIN)/pytest -m gpu

test-kernels: .venv/ready  ## run the kernels of GPUs and of other processors, without either; with SHORT=1 of one kind each
	tests/language_service/kernels/run -m "kernels$(if $(SHORT), and not slow)"

test-tensorrt: .venv/ready  ## build engines with TensorRT for RTX, without a GPU; with SHORT=1 only of tiny models
	tests/vision_service/tensorrt/run -m "tensorrt$(if $(SHORT), and not slow)" -s

test-triton: .venv/ready  ## encode on a real Triton, which is killed under load; with SHORT=1 under a short load
	tests/vision_service/triton/run -m "triton$(if $(SHORT), and not slow)" -s

test-vllm: .venv/ready  ## answer with vLLM as the engine, whose processes are killed; with SHORT=1 in three minutes
	tests/language_service/vllm/run -m "vllm$(if $(SHORT), and not slow)"

test-http: .venv/ready  ## use the HTTP door with a browser and npm's clients; with SHORT=1 in two minutes
	tests/http_gateway/run -m "http$(if $(SHORT), and not slow)"

lint: .venv/ready  ## check style, types and the contract
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos

format: .venv/ready  ## format code and contract
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)
	$(BIN)/buf format --write protos

protos: .venv/ready  ## generate the stubs in tandem/v1 from protos/
	$(BIN)/buf format --write protos
	$(BIN)/buf lint protos
	$(BIN)/python protos/generate.py

bench: .venv/ready $(BENCHMARKS:%=bench-%)  ## run every benchmark, each within about a minute

bench-%: .venv/ready  ## run one benchmark within about a minute
	$(BIN)/python -m benchmarks.$* --quick

lock: .venv/ready  ## write the hashes of all packages for every platform, after a change of constraints.txt
	PYTHONPATH=. $(BIN)/python .ci/lock.py

sbom: .venv-sbom/ready  ## list the packages that Tandem installs, as CycloneDX in dist/, for every platform
	@mkdir -p dist
	@sed "s/^dynamic = .*/version = \"$$(sed -n 's/^__version__ = "\([^"]*\)".*/\1/p' tandem/__init__.py)\"/" \
		pyproject.toml >.venv-sbom/pyproject.toml
	@for lock in locks/*.txt; do to=dist/tandem-serving-$$(basename $$lock .txt).cdx.json && echo $$to && \
		sed '/^# Builds and tests/,$$d' $$lock | .venv-sbom/bin/python -W ignore::UserWarning -m cyclonedx_py requirements \
		--pyproject .venv-sbom/pyproject.toml --output-file $$to - || exit 1; done

.venv-sbom/ready: images/sbom.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@

gpu-wheels: .venv/ready  ## fetch packages for a GPU machine without a network; with RTX=1 also TensorRT for RTX
	$(BIN)/python -m benchmarks.gpu_check.wheels $(if $(RTX),--rtx)

# Needs no .venv: the machine's own Python, which has torch with CUDA.
gpu-check:  ## check on a GPU all that needs one, in eight minutes; with DRY=1 only list it
	$(GPU_PYTHON) -m benchmarks.gpu_check $(if $(DRY),--dry) $(ONLY:%=--only %) $(JSON:%=--json %)

train-demo: .venv/ready  ## train the demo model again, over an hour on two cores
	$(BIN)/python -m demo.train

peers: .peers/transformers/ready .peers/vllm/ready .peers/llama_cpp/ready  ## install engines to compare with; -k skips those that fail

vllm-env: .peers/vllm/ready  ## make .peers/vllm, an environment in which the language service takes --engine vllm
	@site=$$(.peers/vllm/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		echo '$(CURDIR)' >"$$site/tandem.pth" && cp benchmarks/peers/vllm_path/sitecustomize.py "$$site/"
	@echo "Run .peers/vllm/bin/python -m language_service --engine vllm"

clean:  ## delete the virtual environment and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage

# An environment whose Python is gone is made again.
ifneq ($(shell test -x $(BIN)/python && echo runs),runs)
.PHONY: .venv/ready
endif

# Succeeds where the index answers within three seconds; the name server's time counts, too.
INDEX_ANSWERS = $(BIN)/python -c 'import faulthandler, sys, urllib.request as web; \
	faulthandler.dump_traceback_later(3, exit=True); web.urlopen(sys.argv[1], timeout=2)' '$(TORCH_INDEX)/torch/'
# What pip says is shown only where it fails.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
OR_SAY_WHY = >.venv/install.log 2>&1 || { cat .venv/install.log >&2; exit 1; }

# The packages of this Python and platform by their hashes, if there is such a list: `make lock` writes it. Where an index
# has other files, `make` says so and goes on without hashes. With HASHES=only it stops.
LOCK = $(wildcard locks/$(shell $(PYTHON) -c 'import sys, sysconfig; \
	print(sysconfig.get_platform(), "cp%d%d" % sys.version_info[:2], sep="-")').txt)
LOCKED = $(if $(LOCK),$(INSTALL) --require-hashes --no-deps $$index --requirement $(LOCK) >.venv/install.log 2>&1,false)
UNLOCKED = $(if $(LOCK),{ $(if $(HASHES),cat .venv/install.log >&2; exit 1,tail -n 3 .venv/install.log >&2; \
	echo "Packages differ from $(LOCK). They are installed without hashes."); };)

# Torch comes first: only its step may look into its index.
.venv/ready: pyproject.toml setup.py constraints.txt $(wildcard locks/*.txt) $(wildcard */kernels/*.cpp */kernels/*.h)
	$(if $(PYTHON),,$(error Install Python 3.11 or newer, with its venv module (Debian: python3-venv)))
	@echo "$(if $(wildcard $@),Updating,Setting up) .venv: installing packages and compiling kernels takes up to two minutes."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		test ! -e .venv || echo "The Python of .venv is gone, so .venv is made again."; \
		rm -rf .venv && $(PYTHON) -m venv .venv; }
	@if $(INDEX_ANSWERS) >/dev/null 2>&1; then index='--extra-index-url $(TORCH_INDEX)'; fi; \
		if $(LOCKED); then $(INSTALL) --no-deps --no-build-isolation --editable . $(OR_SAY_WHY); else \
		$(UNLOCKED) $(INSTALL) $$index torch $(OR_SAY_WHY); $(INSTALL) --editable '.[all,dev]' $(OR_SAY_WHY); fi
	@touch $@

# Whole lists of exact versions, dependencies not followed: vLLM names packages that come without a build for processors.
# llama.cpp is compiled for this processor, which takes half an hour on two cores.
.peers/%/ready: benchmarks/peers/%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF' \
		$(@D)/bin/pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	touch $@
