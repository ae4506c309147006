# make demo   installs, then trains and evaluates on the embedded data set
# make search installs, indexes three sample clips and opens a page to search them
# make test   installs what is missing, then lints and runs the tests that are short
# make test-slow    runs the others: whole commands, a training that is killed and resumed, a
#                   notebook, and every command on a bucket
# make test-reliability   breaks whole runs on purpose; a small demo, the other notebooks
# make test-torch   adds PyTorch and compares with it
# make test-tpu     compiles for TPUs, without one
# make test-gpu     compiles for GPUs, without one
# make test-launch  checks the recipes for clusters by their tools
# make test-beam    prepares a set as an Apache Beam pipeline
# make docs         builds the documentation as a site, in site/
# The first Python here that pyproject.toml admits; or: make test PYTHON=python3.12
ADMITTED := -c 'import sys; assert (3, 11) <= sys.version_info < (3, 14)'
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
  $$p $(ADMITTED) 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
# Python compiles what it imports. That pip compiles all of it takes two thirds longer.
PIP_INSTALL := pip install --quiet --disable-pip-version-check --no-compile
OUTPUT ?= runs/demo
SEED ?= 0

.PHONY: install demo search lint clean test test-slow \
  test-reliability test-torch test-tpu test-gpu test-beam test-launch docs

install: $(VENV)/installed

$(VENV)/installed: requirements.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 was found;" \
	  "install one, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) $(ADMITTED) 2>/dev/null || { echo "error: $(PYTHON) is not Python 3.11 to 3.13;" \
	  "name another: make PYTHON=/path/to/python3"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m $(PIP_INSTALL) -r requirements.txt
	@touch $@

demo: install
	$(RUN) launch/demo.py --output=$(OUTPUT) --seed=$(SEED)

search: install
	$(RUN) launch/search.py index alpro_jax/shipped/shapes/clips \
	  --checkpoint=shapes --index=runs/shapes.index
	$(RUN) launch/search.py serve --index=runs/shapes.index --open

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check --quiet .
	$(RUN) -m mypy

test: install lint
	$(RUN) -m pytest -n 2 --dist worksteal

test-slow: install
	$(RUN) -m pytest -n 2 --dist worksteal -m 'slow and not reliability'

test-reliability: install
	$(RUN) -m pytest -n 2 -m reliability

$(VENV)/installed-torch: requirements-torch.txt $(VENV)/installed
	$(RUN) -m $(PIP_INSTALL) -r requirements-torch.txt
	# open_clip and timm ask for one, whose builds fit one torch each; tests do without.
	$(RUN) -m pip uninstall --quiet --yes torchvision
	@touch $@

test-torch: $(VENV)/installed-torch
	# Without them tests are skipped. Importing open_clip takes a torchvision that fits torch.
	$(RUN) -c 'import torch, transformers; from importlib.util import find_spec; \
	  assert find_spec("open_clip")'
	$(RUN) -m pytest -n 2 --dist worksteal -m '' tests/test_weights_torch.py tests/test_torch_step.py \
	  tests/test_tower_tokens_torch.py tests/test_image_text_torch.py \
	  tests/test_zero_shot_torch.py

# The compilers have environments of their own: with that for TPUs installed jax
# would look for one.
$(VENV)-tpu/installed $(VENV)-gpu/installed: $(VENV)-%/installed: \
    requirements-%.txt
	$(PYTHON) -m venv $(VENV)-$*
	$(VENV)-$*/bin/python -m $(PIP_INSTALL) -r $<
	@touch $@

test-tpu test-gpu: test-%: $(VENV)-%/installed
	$(VENV)-$*/bin/python -m pytest -m '' tests/test_compile_for.py

# Beam wants an older Pillow than the rest: two steps, the second one wins.
$(VENV)-beam/installed: requirements.txt requirements-beam.txt
	$(PYTHON) -m venv $(VENV)-beam
	$(VENV)-beam/bin/python -m $(PIP_INSTALL) -r requirements.txt
	$(VENV)-beam/bin/python -m $(PIP_INSTALL) -r requirements-beam.txt
	@touch $@

test-beam: $(VENV)-beam/installed
	$(VENV)-beam/bin/python -c 'import apache_beam'  # Else tests are skipped.
	$(VENV)-beam/bin/python -m pytest -n 0 -m '' tests/test_beam.py

$(VENV)-launch/installed: requirements-launch.txt
	$(PYTHON) -m venv $(VENV)-launch
	$(VENV)-launch/bin/python -m $(PIP_INSTALL) -r requirements-launch.txt
	@touch $@

test-launch: $(VENV)-launch/installed
	$(VENV)-launch/bin/python -c 'import sky, kubeflow_trainer_api'  # Else tests are skipped.
	$(VENV)-launch/bin/python -m pytest --noconftest -m '' tests/test_cluster_scripts.py

# The pages read the code without importing it.
$(VENV)-docs/installed: requirements-docs.txt
	$(PYTHON) -m venv $(VENV)-docs
	$(VENV)-docs/bin/python -m $(PIP_INSTALL) -r requirements-docs.txt
	@touch $@

docs: $(VENV)-docs/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --strict

clean:
	rm -rf runs/demo site .pytest_cache .ruff_cache
