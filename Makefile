# make demo: install, train on the embedded glyphs, show the result.   make test: install, check everything.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# one worker more than cores, since some tests wait for processes of their own
WORKERS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )) --maxprocesses 5 \
	--dist loadfile --durations 30 --durations-min 5

.PHONY: help demo test check docs notebooks test-oldest clean

help:
	@echo "make demo         install, train on glyphs drawn here, show Recall@k and pictures (about 5 minutes, then 2)"
	@echo "make test         install, then ruff, mypy and pytest (about 5 minutes, then 5 on 2 CPU cores)"
	@echo "make check        the same with the quick tests only, in a minute: losses, metrics, samplers, data, style"
	@echo "make docs         the documentation as a site, in site/"
	@echo "make test-oldest  the tests with the oldest releases that setup.cfg allows, on Python 3.10"
	@echo "make notebooks    executes the notebooks and stores them with their outputs (about 2 minutes)"
	@echo "make clean        remove the virtual environments and what tools left"
	@echo "PYTHON=python3.12 chooses the interpreter, VENV=folder the virtual environment"

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
	@echo "==> Installing lightning-recall and what makes its documentation into $(VENV)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -e ".[docs]"
	@touch $(VENV)/.installed $@

demo: $(VENV)/.installed
	@echo "==> Training on characters in 16 typefaces, about a minute on 2 CPU cores"
	$(BIN)/lightning-recall fit --config configs/glyphs.yaml
	@echo "==> Testing on 1,028 characters that the training has not seen"
	$(BIN)/lightning-recall test --config configs/glyphs.yaml \
		--ckpt_path "$$(ls -t runs/glyphs/version_*/checkpoints/best.ckpt | head -n 1)"

test: $(VENV)/.installed-dev
	@echo "==> ruff"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "==> mypy"
	$(BIN)/mypy
	@echo "==> pytest, about 4 minutes on 2 CPU cores"
	$(WORKERS)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(WORKERS) -q tests/losses tests/metrics tests/recompute tests/datamodules tests/test_samplers.py \
		tests/test_mixup.py tests/test_architecture.py

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "==> Open site/index.html; to search, too: $(BIN)/python -m http.server --directory site"

test-oldest:
	@echo "==> Installing the oldest releases that setup.cfg allows into $(VENV)-oldest"
	$(PYTHON) -m venv $(VENV)-oldest-uv
	$(VENV)-oldest-uv/bin/python -m pip install --quiet uv
	$(VENV)-oldest-uv/bin/uv venv --clear --python 3.10 $(VENV)-oldest
	VIRTUAL_ENV=$(VENV)-oldest $(VENV)-oldest-uv/bin/uv pip install --resolution lowest-direct -e ".[dev]"
	$(VENV)-oldest/bin/python -m pytest -o filterwarnings=default

notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-oldest-uv build dist *.egg-info site .mypy_cache .pytest_cache .ruff_cache .hypothesis
