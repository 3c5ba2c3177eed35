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

.PHONY: install install-test run test test-slow lint

# .venv/stamp says what was installed: interpreter version, contents of setup.py, place of the
# checkout (an editable install remembers its path), and whether with what the tests need, which is
# as large again. Nothing is done while all hold. The stamp is written last, so an installation cut
# short is taken up again.
install install-test:
	@extra='$(if $(filter install-test,$@),[test])'; \
	version="$$("$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)" || { \
	    echo "PYTHON=$(PYTHON) does not run; give a Python 3.11 or newer" >&2; exit 2; }; \
	minor="$${version#3.}"; minor="$${minor%%.*}"; \
	if [ "$${version%%.*}" != 3 ] || [ "$$minor" -lt 11 ]; then \
	    echo "PYTHON=$(PYTHON) is Python $$version; Seedbed needs 3.11 or newer" >&2; exit 2; fi; \
	wanted="$$version $$(cksum < setup.py) $$PWD"; \
	found="$$(cat .venv/stamp 2>/dev/null)"; \
	if [ -x $(IN_VENV) ] && { [ "$$found" = "$$wanted $$extra" ] || [ "$$found" = "$$wanted [test]" ]; }; then exit 0; fi; \
	echo "Installing what Seedbed needs into .venv (Python $$version, about a minute)"; \
	present="$$($(IN_VENV) -c 'import pip, sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)"; \
	if [ "$$present" != "$$version" ]; then "$(PYTHON)" -m venv --clear .venv || exit 1; fi; \
	rm -f .venv/stamp; \
	$(IN_VENV) -m pip install --quiet --no-input --no-compile --disable-pip-version-check --progress-bar off \
	    --editable ".$$extra" || exit 1; \
	echo "$$wanted $$extra" > .venv/stamp

run: install
	$(IN_VENV) -m launch.cli run --config=configs/quickstart.py $(ARGS)

test: install-test
	$(IN_VENV) -m pytest -q -m "not slow" $(SHARED)

test-slow: install-test
	$(IN_VENV) -m pytest -q -m slow $(SHARED)

lint: install-test
	$(IN_VENV) -m ruff check .
	$(IN_VENV) -m ruff format --check .
