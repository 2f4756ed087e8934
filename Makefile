# make train [CONFIG=configs/quickstart.yaml] [ARGS="train.steps=50"]   train; the same command goes on after a stop
# make test [JOBS=2]                                                   the test suite, in so many processes
# make soak [JOBS=2]                                                   the tests with long counts
# make gpu                                                             the tests of what a CPU cannot show, on a GPU
# make clean                                                           remove .venv and caches, never corpora or runs

PYTHON ?= python3
CONFIG ?= configs/quickstart.yaml
ARGS   ?=
JOBS   ?= 2
BIN    := .venv/bin

.PHONY: train test soak gpu lint clean

train: .venv/core
	@$(BIN)/python train.py $(CONFIG) $(ARGS)

test: .venv/test
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

soak: .venv/soak
	@$(BIN)/python -m pytest -q -m soak -n $(JOBS) --dist loadfile

gpu: .venv/test
	@$(BIN)/python -m pytest -q -m gpu

lint: .venv/dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# One stamp for each set of packages: an interrupted install leaves no stamp and is done again.
.venv/core: EXTRA =
.venv/test: EXTRA = [test]
.venv/soak: EXTRA = [test,cluster,language]
.venv/dev:  EXTRA = [test,dev]
.venv/core .venv/test .venv/soak .venv/dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing packages into .venv (once; a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".$(EXTRA)"
	@touch $@
