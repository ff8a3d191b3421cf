# Two commands do everything, installation included: `make repro` and `make test`. `make help` lists all.
SHELL := /bin/bash
PYTHON ?= python3
TASK ?= denoise
GPUS ?= 1
JOBS ?= 3  # processes that run tests
BIN := .venv/bin
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DVC_NO_ANALYTICS := true
export TASK MODEL PAIR EPOCH RECIPE NAME GPUS IMAGES_PER_SECOND  # read by the shell, which takes them as they are
export MPLBACKEND := Agg

# The tests of a file share a process, and so its Ray session. Many of them wait for other processes, not for a CPU.
SPREAD = --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart=0

.DEFAULT_GOAL := help
.PHONY: help setup repro data test test-all check lint preview tune apply approve rollback doctor fetch ui bench bench-gpu plan gc lock clean results

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY)  ## make .venv with the pinned versions, and initialise DVC

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed; name it: make PYTHON=python3.12 ...")'
	@command -v git >/dev/null || { echo "git is needed: apt-get install git"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt "pip>=25.1"
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --quiet --constraint constraints.txt --group pipeline --group dev --editable .
	@test -d .git || git init --quiet
	@test -f .dvc/config || $(BIN)/dvc init --quiet
	@touch $(READY)

# What lies elsewhere is checked before the first work.
repro: $(READY)  ## photographs -> shards -> trained, measured, promoted models; then a summary
	@[ -z "$$RAY_ADDRESS$$DGUNET_STORAGE$$DGUNET_SHARDS$$DGUNET_REMOTE$$MLFLOW_TRACKING_URI" ] || python -m pipeline.doctor
	@dvc repro
	@python -m pipeline.summary

data: $(READY)  ## the published image sets, and which are here; NAME=cbsd68: fetch one and compare its checksums
	@python -m pipeline.data $(if $(NAME),--name "$$NAME")

test: $(READY)  ## the tests, some with real Ray and MLflow (about four minutes on two cores)
	@pytest $(SPREAD)

test-all: $(READY)  ## all tests that can run on this machine, also the slow ones (about an hour)
	@pytest -m "" -rs $(SPREAD)

check: lint  ## formatting, lint, types, import contracts
lint: $(READY)
	@ruff format --check . && ruff check . && mypy && lint-imports

preview: $(READY)  ## TASK=derain: a contact sheet of the task's degradation; PAIR=KEY EPOCH=3 VERIFY=1: a training pair again
	@python -m pipeline.preview --task "$$TASK" $(if $(PAIR),--pair "$$PAIR") $(if $(EPOCH),--epoch "$$EPOCH") $(if $(VERIFY),--verify)

tune: $(READY)  ## TASK=derain: search the task's recipe on this machine or RAY_ADDRESS; writes reports/TASK/tune
	@dvc repro --quiet "synthesize@$$TASK"
	@python -m pipeline.tune --task "$$TASK" --shards "data/shards/$$TASK" --out "reports/$$TASK/tune"

apply: $(READY)  ## RECIPE=infra/recipes/derain.yaml: show what a recipe changes in params.yaml, ask (YES=1: do not), apply
	@python -m pipeline.apply_recipe "$$RECIPE" $(if $(YES),--yes)

approve: $(READY)  ## TASK=derain VERSION=3: make a registered version the champion by hand
	@python -m pipeline.approve --task "$$TASK" --version "$$VERSION"

rollback: $(READY)  ## TASK=derain: make the previous champion the champion again
	@python -m pipeline.rollback --task "$$TASK"

doctor: $(READY)  ## check cluster, MLflow, storage, DVC remote and shared folders, as every run does before it starts
	@python -m pipeline.doctor

fetch: $(READY)  ## get the results that a cluster made of this commit (DGUNET_STORAGE, DGUNET_REMOTE as there)
	@python -m pipeline.results fetch

ui: $(READY)  ## browse runs and models in MLflow on http://127.0.0.1:5000
	@mlflow ui --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}" --host 127.0.0.1 --port 5000

bench: $(READY)  ## measure network, loader, synthesis, degradations, scaling on this machine; writes benchmarks/results
	@for name in network loader synthesis degradations scaling; do python -m benchmarks.$$name; done

bench-gpu: $(READY)  ## measure the ways to compute a training step on this machine's GPU; writes benchmarks/results/gpu.md
	@python -m benchmarks.gpu

results: $(READY)  ## TASK=derain: measure models/TASK (MODEL=models:/derain@champion: another); writes benchmarks/results/tasks/TASK.md
	@python -m benchmarks.tasks --task "$$TASK" $(if $(MODEL),--model "$$MODEL")

plan: $(READY)  ## TASK=derain GPUS=8: hours and bytes of a published recipe, with sources; IMAGES_PER_SECOND=100 of a GPU
	@python -m pipeline.plan --task "$$TASK" --gpus "$$GPUS" $(if $(IMAGES_PER_SECOND),--images-per-second "$$IMAGES_PER_SECOND")

gc: $(READY)  ## list what no commit, registered version or live run needs, with sizes; ask (YES=1: do not), delete
	@python -m pipeline.collect $(if $(YES),--yes)

lock: $(READY)  ## write constraints.txt from what is installed
	@$(BIN)/python -m pip freeze --exclude-editable --exclude dgunet | sed -E 's/\+cpu$$//' > constraints.txt

# Checkpoints of interrupted runs and half-made shards stay: they may be hours of work.
clean:  ## remove what was built, the environment and caches; UNFINISHED=1: unfinished work in .cache too (not mlflow.db, not .dvc/cache)
	rm -rf .venv data models reports preview
	@for path in .cache/*; do \
		case $$path in \
			'.cache/*') ;; \
			.cache/runs|.cache/synthesize) if [ -n "$(UNFINISHED)" ]; then rm -rf "$$path"; \
				elif [ -n "$$(ls -A "$$path")" ]; then echo "kept: unfinished work in $$path (make clean UNFINISHED=1 removes it)"; fi;; \
			*) rm -rf "$$path";; \
		esac; \
	done
