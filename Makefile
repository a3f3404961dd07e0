# Every target installs what it needs. You need git, make and Python 3.12 or newer.
# `make help` lists the targets.

.DELETE_ON_ERROR:
.PHONY: help env demo test test-slow test-min lint docs bench build clean

PYTHON = .venv/bin/python
# A version manager may provide a uv command that does not work, so run it once.
UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .uv/bin/uv)
LOCAL_UV := $(filter .uv/bin/uv,$(UV))
# Use the certificates of the system if it has any, as pip and git do.
export UV_SYSTEM_CERTS ?= $(if $(wildcard /etc/ssl/certs/* /etc/pki/*),1,0)
export PIP_DISABLE_PIP_VERSION_CHECK = 1
# Compile what is installed once. Where PYTHONDONTWRITEBYTECODE is set, each process would compile torch and the rest
# again, which takes 20 of the 32 seconds of processor time of an import.
export UV_COMPILE_BYTECODE ?= 1

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

env: .venv/.tests .venv/.style  ## create .venv with all development tools

demo: .venv/.package  ## train on synthetic landscapes and write scores and pictures to demo/
	@MPLBACKEND=Agg $(PYTHON) -m torchgeo_omnisat demo --output demo $(ARGS)

# One process per core with one thread each: most tests are too small to use more threads. Bytecode is always written,
# because each process would compile the tests and the package again. ARGS may have another -m: ARGS='-m ""' runs all.
PYTEST = MPLBACKEND=Agg PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(PYTHON) -m pytest \
    -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test: .venv/.tests  ## run the tests, without those that are marked slow
	@$(PYTEST) -m 'not slow' $(ARGS)

test-slow: .venv/.tests  ## run the tests that are marked slow
	@$(PYTEST) -m slow $(ARGS)

test-min: .venv/pyvenv.cfg  ## run the tests with the oldest supported versions, in .venv-min
	@$(UV) venv --quiet --allow-existing --python $(PYTHON) .venv-min
	@$(UV) pip install --quiet --python .venv-min --resolution lowest-direct --editable '.[tests,stac,netcdf]'
	@MPLBACKEND=Agg OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} .venv-min/bin/python -m pytest $(ARGS)

lint: .venv/.tests .venv/.style  ## check style, types and import layers
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/mypy
	@.venv/bin/lint-imports

# The models of the tutorials are so small that more threads would make them slower. Pages that have not changed are
# read again (-E), because Sphinx would not repeat their warnings; tutorials that have not changed are not run again.
# Sphinx divides the pages among processes in alphabetical order; six of them are needed to run two tutorials at once.
docs: export OMP_NUM_THREADS ?= 1
docs: .venv/.docs  ## build the documentation in docs/_build/html and test its examples
	@$(PYTHON) -m sphinx -W --keep-going -q -E -j 6 -d docs/_build/doctrees -b html docs docs/_build/html
	@$(PYTHON) -m sphinx -W --keep-going -q -d docs/_build/doctrees -b doctest docs docs/_build/doctest
	@echo 'docs/_build/html/index.html'

bench: .venv/.package  ## benchmark memory, speed and augmentation, and run the smallest ablation
	@$(PYTHON) benchmarks/speed.py
	@$(PYTHON) benchmarks/augmentation.py
	@$(PYTHON) benchmarks/ablation.py --smoke --fresh

build: $(LOCAL_UV)  ## build and check the release in dist/
	@rm -rf dist
	@$(UV) build --quiet --out-dir dist
	@$(UV) tool run --quiet twine check --strict dist/*
	@ls -l dist

clean:  ## remove generated files and the virtual environment
	rm -rf .venv .venv-min .uv demo dist build docs/_build docs/tutorials benchmarks/runs .*_cache .coverage htmlcov

# Stamp files: an installation step runs again only when pyproject.toml changes.
.venv/.package: pyproject.toml .venv/pyvenv.cfg
	@echo 'Installing torchgeo_omnisat into .venv (PyTorch is large, the first time takes minutes)'
	@$(UV) pip install --quiet --python .venv --editable .
	@touch $@

.venv/.tests: .venv/.package
	@$(UV) pip install --quiet --python .venv --editable '.[tests]'
	@touch $@

.venv/.style: .venv/.package
	@$(UV) pip install --quiet --python .venv --editable '.[style]'
	@touch $@

.venv/.docs: .venv/.package
	@$(UV) pip install --quiet --python .venv --editable '.[docs]'
	@touch $@

# Use the version of .python-version, otherwise any supported version.
.venv/pyvenv.cfg: | $(LOCAL_UV)
	@rm -rf .venv
	@$(UV) venv --quiet --python "$${UV_PYTHON:-$$(cat .python-version)}" .venv 2>/dev/null || \
	$(UV) venv --quiet --python "$${UV_PYTHON:->=3.12}" .venv || \
	{ echo 'make: no Python 3.12 or newer: install one, or name the one to use: make UV_PYTHON=/path/to/python TARGET' >&2; exit 1; }

# Install uv into the repository with any Python 3: with venv, otherwise (minimal python3 on Debian) with pip.
.uv/bin/uv:
	@echo 'Installing uv into .uv'
	@for python in python3 python3.12 python3.13 python3.14 /usr/bin/python3 python; do \
	    $$python -c 'import sys; sys.exit(sys.version_info < (3, 8))' 2>/dev/null || continue; \
	    rm -rf .uv; \
	    $$python -m venv .uv >/dev/null 2>&1 && .uv/bin/python -m pip install --quiet uv && exit 0; \
	    rm -rf .uv; \
	    $$python -m pip install --quiet --target .uv uv 2>/dev/null && test -x .uv/bin/uv && exit 0; \
	done; \
	rm -rf .uv; \
	echo 'make: could not install uv with any Python 3: install uv yourself, or the packages python3-venv and python3-pip' >&2; exit 1
