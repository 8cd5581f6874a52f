# make demo: install, train on the generated glyphs, show the result.   make test: install, run all checks.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# one more worker than cores, since some tests wait for subprocesses
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) --maxprocesses 5 \
	--dist loadfile --durations 30 --durations-min 5

.PHONY: help demo test check docs notebooks test-oldest clean

help:
	@echo "make demo         install, train on glyphs, show Recall@k and pictures (about 5 minutes to install, 2 to run)"
	@echo "make test         install, then run ruff, mypy and pytest (about 5 minutes to install, 5 to run on 2 CPU cores)"
	@echo "make check        style checks and the quick tests (losses, metrics, samplers, data), about a minute"
	@echo "make docs         build the documentation in site/"
	@echo "make test-oldest  run the tests with the oldest releases that setup.cfg allows, on Python 3.11"
	@echo "make notebooks    execute the notebooks and store their outputs (about 2 minutes)"
	@echo "make clean        remove the virtual environments and tool caches"
	@echo "PYTHON=python3.12 sets the interpreter, VENV=folder the virtual environment,"
	@echo "LIGHTNING_RECALL_LIGHTNING=lightning.pytorch the Lightning package that the tests use"

$(VENV)/.installed: setup.cfg pyproject.toml
	@echo "==> Installing lightning-recall into $(VENV) (a few minutes; several GB where PyTorch comes with CUDA)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e .
	@touch $@

$(VENV)/.installed-dev: setup.cfg pyproject.toml
	@echo "==> Installing lightning-recall and its test tools into $(VENV) (a few minutes, several GB)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[dev]"
	@touch $(VENV)/.installed $(VENV)/.installed-docs $@

$(VENV)/.installed-docs: setup.cfg pyproject.toml
	@echo "==> Installing lightning-recall and the documentation tools into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[docs]"
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	@echo "==> Training on characters in 16 typefaces, about a minute on 2 CPU cores"
	$(BIN)/lightning-recall fit --config configs/glyphs.yaml
	@echo "==> Testing on 1,028 characters that were not used for training"
	$(BIN)/lightning-recall test --config configs/glyphs.yaml \
		--ckpt_path "$$(ls -t runs/glyphs/version_*/checkpoints/best.ckpt | head -n 1)"

test: $(VENV)/.installed-dev
	@echo "==> ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "==> mypy"
	$(BIN)/mypy
	@echo "==> pytest, about 4 minutes on 2 CPU cores"
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -q tests/losses tests/metrics tests/recompute tests/datamodules tests/test_samplers.py \
		tests/test_mixup.py tests/test_architecture.py

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "==> Open site/index.html. For search, serve it: $(BIN)/python -m http.server --directory site"

test-oldest:
	@echo "==> Installing the oldest releases that setup.cfg allows into $(VENV)-oldest"
	$(PYTHON) -m venv $(VENV)-oldest-uv
	$(VENV)-oldest-uv/bin/python -m pip install --quiet uv
	$(VENV)-oldest-uv/bin/uv venv --clear --python 3.11 $(VENV)-oldest
	VIRTUAL_ENV=$(VENV)-oldest $(VENV)-oldest-uv/bin/uv pip install --resolution lowest-direct -e ".[dev]"
	$(VENV)-oldest/bin/python -m pytest -o filterwarnings=default

notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-oldest-uv build dist *.egg-info site .mypy_cache .pytest_cache .ruff_cache .hypothesis
