# `make laptop` and `make test` work on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off --no-compile -c constraints.txt
# One thread per process: several processes that each use all cores slow each other down.
export OMP_NUM_THREADS ?= 1
export RAY_USAGE_STATS_ENABLED ?= 0
export MLFLOW_DISABLE_TELEMETRY ?= true
export HF_HUB_OFFLINE ?= 1
# pip does not compile (this saves a minute), so the first import must be allowed to write .pyc files. Otherwise each of
# Ray's processes compiles everything again.
unexport PYTHONDONTWRITEBYTECODE
# make chaos TESTS=tests/chaos/test_kills.py::test_name runs one test of a suite; cluster and browser take it too.
TESTS ?=
# Debian's packages that a suite needs. They are installed where this runs as root on Debian; the tests skip otherwise.
debian = @dpkg -s $(1) >/dev/null 2>&1 || { apt-get update -q && apt-get install -y -q --no-install-recommends $(1); } \
  || echo "not installed, needs root on Debian: apt-get install $(1)"

.PHONY: laptop test bench chaos cluster browser storages commands docs clean help
laptop: .venv/laptop  ## install, then run the main job: Table 5 as a sweep, in minutes on two cores
	.venv/bin/python -m raysweep.run search_spaces/table5.yaml --profile laptop

test: .venv/dev  ## install, then run every check, and all tests but the suites browser, commands, cluster and chaos
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	.venv/bin/pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: .venv/dev  ## twelve minutes: measure every ratio of benchmarks/ side by side on this machine
	.venv/bin/python benchmarks/all.py

chaos: .venv/dev  ## an hour: kill every kind of process at every kind of moment
	.venv/bin/pytest -m chaos -rs $(TESTS)

cluster: .venv/dev  ## 25 minutes, as root: run `ray up` on three hosts made on this machine, cut their links, lose their head
	$(call debian,openssh-server rsync iproute2 tmux)
	.venv/bin/pytest -m cluster -rs $(TESTS)

browser: .venv/dev  ## two minutes: open MLflow's pages and the report in a real Chromium
	$(call debian,chromium)
	$(PIP) -e '.[browser]'
	.venv/bin/pytest -m browser -rs $(TESTS)

storages: .venv/dev  ## 20 minutes: one sweep in a folder, in S3 and in Azure (emulators), also with the storage away
	@command -v npm >/dev/null || { apt-get update -q && apt-get install -y -q --no-install-recommends nodejs npm; } \
	  || echo "not installed, needs root on Debian: apt-get install nodejs npm"
	npm install --silent --no-audit --no-fund --prefix .venv/azurite azurite@3.35.0
	.venv/bin/pytest -m storages -rs $(TESTS)

commands: .venv/dev  ## 15 minutes: run every command of the documentation as written
	.venv/bin/pytest -m commands -rs $(TESTS)

docs: .venv/dev  ## build the documentation as a site in site/
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "raysweep needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "no venv in $(PYTHON): install it (Debian: python3-venv)"; exit 1; }

.venv/laptop: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing raysweep into .venv: about 2 GB, some minutes"
	$(PIP) -e '.[laptop]'
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "Installing raysweep and its test tools into .venv: about 2 GB, some minutes"
	$(PIP) -e '.[dev,laptop]'
	@touch $@ .venv/laptop

clean:  ## remove the environment and the caches, keep runs/
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

help:  ## print this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed 's/:.*## /\t/'
