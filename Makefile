# Entry points for users and developers; each says what it does while it does it.
#
#   make demo    the main job on a real image, step by step (IMAGE=path takes any archive of yours)
#   make test    the tests; what a test needs and the machine lacks is installed first (T="-k words" for some)
#   make test-large   those on an image of a gigabyte as well, a quarter of an hour longer
#   make lint    ruff, mypy --strict, import-linter
#   make oracle  ten thousand random sequences on the FUSE union and on overlayfs, compared
#   make bench   all measurements and their report; make bench-load, -mount, and so on: one of them (B="--rounds 3")
#   make bench-quick   three minutes of them, on small images; make bench-report draws what was measured
#   make bench-check   the quick ones again, held against the ratios that README states
#   make setup   the virtual environment .venv alone
#   make clean   removes .venv and what the tools left; images made for demo, tests and bench stay in ~/.cache/layerfs

SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
IMAGE ?=
T     ?=
B     ?=
BENCHES := $(addprefix bench-,load pull mount resolve lookup storm read fuse changes upkeep start memory scaling)

# What makes the images of demo, tests and bench; and what tests and measurements compare with.
IMAGE_TOOLS := mmdebstrap umoci skopeo
TEST_TOOLS  := $(IMAGE_TOOLS) buildah podman containerd runc mkfs.erofs mkfs.ext4 mkfs.xfs mkfs.btrfs getfattr getfacl setcap strace igzip openssl fusermount3 fuse-overlayfs docker-registry htpasswd /usr/bin/time
BENCH_TOOLS := $(TEST_TOOLS) unionfs zstd unpigz

.DEFAULT_GOAL := help
# Measurements side by side would measure each other.
.NOTPARALLEL:
.PHONY: help setup demo test test-large oracle lint format bench $(BENCHES) bench-quick bench-check bench-report clean

help:
	@sed -n '3,13s/^#   //p' Makefile

setup: $(VENV)/.installed

# The stamp depends on pyproject.toml alone: an editable install follows the sources by itself.
$(VENV)/.installed: pyproject.toml .ci/setup
	@.ci/setup venv $(VENV)
	@touch $@

demo: setup
	@.ci/setup packages $(IMAGE_TOOLS)
	@PATH="$(CURDIR)/$(BIN):$$PATH:/usr/sbin:/sbin" bench/demo.sh $(if $(IMAGE),"$(IMAGE)")

test: setup
	@.ci/setup packages $(TEST_TOOLS)
	PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/pytest $(T)

test-large:
	@$(MAKE) --no-print-directory test T="--large $(T)"

# The long comparison of the union with overlayfs of the kernel; needs root, takes some twenty minutes (N=100 for a
# part). It takes longer than a test that hangs is given before it is asked where it is.
oracle: setup
	LAYERFS_ORACLE=$(or $(N),2500) $(BIN)/pytest -o faulthandler_timeout=3600 tests/stateful/test_union_oracle.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One that fails takes the others' figures from nobody.
bench: setup
	@.ci/setup packages $(BENCH_TOOLS)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m bench all $(B)

bench-quick: setup
	@.ci/setup packages $(BENCH_TOOLS)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m bench check --only-run
	@$(BIN)/python -m bench report

bench-check: setup
	@.ci/setup packages $(BENCH_TOOLS)
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m bench check

bench-report: setup
	@$(BIN)/python -m bench report

$(BENCHES): bench-%: setup
	@.ci/setup packages $(BENCH_TOOLS)
	PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m bench run $* $(B)

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
