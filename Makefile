# Every target works on a fresh machine that has Python 3.10 or newer and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT := demo-out
WORK ?= build/runs
PAPER ?= build/paper
SECONDS ?= 300

.PHONY: help demo test check lint type man bench quality fuzz wheel docs samples screenshots plots paper clean

help:
	@echo "make demo     install, then detect and refine on sample_adapters/"
	@echo "make test     install, then run the whole suite"
	@echo "make check    test, lint and type"
	@echo "make lint     ruff"
	@echo "make type     mypy"
	@echo "make man      the manual page build/man/clair.1"
	@echo "make bench    speed against the floors of reading and of writing"
	@echo "make quality  verdicts on trained and planted contamination, quick mode, into build/detection"
	@echo "make fuzz     hostile inputs for SECONDS=300 in all, what breaks is kept in build/fuzz"
	@echo "make wheel    build sdist and wheel into build/dist, install the wheel anew and try it"
	@echo "make docs     build the documentation into build/site, where every link must lead somewhere"
	@echo "make screenshots  pictures of six pages into docs/images, with Debian's chromium"
	@echo "make plots    a figure of each kind into docs/images"
	@echo "make paper    tables and figures of benchmarks/results from the runs kept in WORK=DIR, into PAPER=$(PAPER)"
	@echo "make samples  train sample_adapters/ anew"

# torch first and pinned: the plain name would bring several GB of CUDA libraries along
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) -e '.[dev]'
	-$(PIP) -e '.[formats]' # not on every machine; tests of these formats are skipped without
	@touch $@

demo: $(VENV)/.installed
	@echo '$$ clair detect sample_adapters'
	@$(BIN)/clair detect sample_adapters || test $$? -eq 1 # a finding, as it should be
	@echo
	@echo '$$ clair refine sample_adapters --out $(OUT) --overwrite'
	@$(BIN)/clair refine sample_adapters --out $(OUT) --overwrite
	@echo "the whole report: $(OUT)/report.json"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.installed-dev
	$(BIN)/mypy

check: test lint type

man: $(VENV)/.installed
	@mkdir -p build/man
	$(BIN)/python -m clair_cli.cli.manual > build/man/clair.1.part
	@mv build/man/clair.1.part build/man/clair.1

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.speed --clients 20,50 --modules 8

quality: $(VENV)/.installed-dev
	$(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks.detection --quick --work build/detection --out build/detection

# where atheris has no wheel, the same targets run on plain mutations
fuzz: $(VENV)/.installed-dev
	-$(PIP) -e '.[fuzz]'
	OMP_NUM_THREADS=1 $(BIN)/python -m fuzz.run --seconds $(SECONDS)

# build/wheel-env is a new environment in which nothing but the wheel and what it needs is installed
wheel: $(VENV)/.installed-dev
	rm -rf build/dist build/wheel-env
	$(BIN)/python -m build --outdir build/dist .
	$(BIN)/python -m twine check --strict build/dist/*
	$(PYTHON) -m venv build/wheel-env
	build/wheel-env/bin/python -m pip install --quiet -c constraints.txt torch
	build/wheel-env/bin/python -m pip install --quiet -c constraints.txt build/dist/*.whl
	build/wheel-env/bin/python tests/packaging/installed.py sample_adapters

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

screenshots: $(VENV)/.installed-dev
	$(PIP) -e '.[browser]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.page --images docs/images

plots: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.figures --images docs/images

paper: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.paper --work $(WORK) --out $(PAPER)

samples: $(VENV)/.installed-dev
	$(BIN)/python -m examples.text_copy.samples

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
