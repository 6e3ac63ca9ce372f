# make demo: the whole way once through, on drawn pictures.   make test: the suite.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test thorough check format clean help

help:
	@echo "make demo    install, train on drawn pictures, evaluate: minutes on two cores"
	@echo "make test    install with the test tools and run the suite"
	@echo "make thorough  the tests that make test leaves out: minutes of computing each"
	@echo "make check   format, lint, types and the suite, as CI does"
	@echo "make format  put the code into shape"
	@echo "make clean   remove .venv and what tools left behind; outputs/ and multirun/ stay"

# Installing again is only needed when what is to be installed has changed.
.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Dermalyze needs Python 3.11 or newer; $(PYTHON) is older. Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: .venv/.installed
	@run=outputs/demo/$$(date +%Y-%m-%d_%H-%M-%S); \
	$(BIN)/python -m dermalyze.train experiment=demo hydra.run.dir=$$run && \
	$(BIN)/python -m dermalyze.evaluate checkpoint=$$run

test: .venv/.installed-dev
	$(BIN)/python -m pytest

# Ray's launcher wants an older cloudpickle than all else: it gets a place of its own, laid over the other.
.venv/ray/.installed: .venv/.installed-dev
	$(BIN)/python -m venv .venv/ray
	@for folder in "$(CURDIR)" "$(CURDIR)"/.venv/lib/python*/site-packages; do echo "$$folder"; done \
	  > "$$(echo .venv/ray/lib/python*/site-packages)/below.pth"
	.venv/ray/bin/python -m pip install --quiet --disable-pip-version-check hydra-ray-launcher==1.2.2 ray==2.60.0
	@timeout 120 .venv/ray/bin/python -c 'import ray; ray.init(num_cpus=1); ray.get(ray.remote(lambda: 0).remote())' \
	  > /dev/null 2>&1
	@touch $@

# Without a C compiler the one test that wants this skips, and says so.
thorough: .venv/.installed-dev
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[reference]'
	$(BIN)/python -m pytest -m thorough
	@if $(MAKE) --no-print-directory .venv/ray/.installed; \
	  then .venv/ray/bin/python -m pytest -m thorough -n 0 tests/commands/test_launchers.py -k ray; \
	  else echo "Ray cannot be installed here or does not start, so its launcher is not tested"; fi

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: .venv/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info
