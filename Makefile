# Seedbed's few commands. `make run` grows a small model from raw text; `make test` checks the code.
# Both build .venv first. Choose the interpreter with PYTHON=, pass flags to the run with ARGS=:
#     make run PYTHON=python3.12 ARGS='--config.pretrain.loop.num_steps=200'

PYTHON ?= python3
ARGS ?=
# Processes that run tests; a file's tests stay together, since they share what they build.
JOBS ?= 2
SHARED := -n $(JOBS) --dist loadfile --no-loadscope-reorder
IN_VENV := .venv/bin/python

# Images of containers often set it; each process would then compile what it imports, for seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install run test test-slow lint

# .venv/stamp says what was installed: interpreter version, contents of setup.py, place of the
# checkout (an editable install remembers its path). Nothing is done while all three still hold.
# The stamp is written last, so an installation cut short is taken up again.
install:
	@version="$$("$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" || { \
	    echo "PYTHON=$(PYTHON) does not run; give a Python 3.11 or newer" >&2; exit 2; }; \
	minor="$${version#3.}"; minor="$${minor%%.*}"; \
	if [ "$${version%%.*}" != 3 ] || [ "$$minor" -lt 11 ]; then \
	    echo "PYTHON=$(PYTHON) is Python $$version; Seedbed needs 3.11 or newer" >&2; exit 2; fi; \
	wanted="$$version $$(cksum < setup.py) $$PWD"; \
	if [ "$$wanted" = "$$(cat .venv/stamp 2>/dev/null)" ] && [ -x $(IN_VENV) ]; then exit 0; fi; \
	echo "Installing what Seedbed needs into .venv (Python $$version, about a minute)"; \
	present="$$($(IN_VENV) -c 'import pip, sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"; \
	if [ "$$present" != "$$version" ]; then "$(PYTHON)" -m venv --clear .venv || exit 1; fi; \
	rm -f .venv/stamp; \
	$(IN_VENV) -m pip install --quiet --no-input --no-compile --disable-pip-version-check --progress-bar off \
	    --editable '.[test]' || exit 1; \
	echo "$$wanted" > .venv/stamp

run: install
	$(IN_VENV) -m launch.cli run --config=configs/quickstart.py $(ARGS)

test: install
	$(IN_VENV) -m pytest -q -m "not slow" $(SHARED)

test-slow: install
	$(IN_VENV) -m pytest -q -m slow $(SHARED)

lint: install
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
