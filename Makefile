# Entry points for users and developers; each says what it does while it does it.
#   make demo    the main job on a real image (IMAGE=path takes any archive of yours)
#   make test    every test; make lint: ruff, mypy --strict, import-linter
#   make bench   the measurements of README (make bench-load, bench-mount, bench-resolve, bench-storm: one of them)

SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin

.PHONY: setup
setup: $(VENV)/.installed

# The stamp depends on pyproject.toml alone: an editable install follows the sources by itself.
$(VENV)/.installed: pyproject.toml .ci/setup
	@.ci/setup venv $(VENV)
	@touch $@
