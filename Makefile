# make run      set up .venv, then run the demo: play a clip to the node, score and draw the result
#               make run IMAGE=photo.jpg, VIDEO=film.mp4 or CAMERA=0 (or a device, or a URL) use your own input
# make test     set up .venv, then run lint, type checks and tests
# make docs     set up .venv, then build the site from docs/ into site/
# make release  set up .venv, then build the source archive and the wheel into dist/, and check them as they are uploaded
# make coverage set up .venv, then run the tests and print which share of the product they run
# make mutants  set up .venv, then change the product line by line and list the changes that no test notices: hours
#               make mutants ONLY='mega_ros.track*' changes one module
# make soak     set up .venv, then run the node under a camera of 30 Hz and say whether memory and latency stay
#               make soak MINUTES=60 runs an hour, not ten minutes
PYTHON ?= python3
# not quiet: pip shows its progress. No byte code: most of the installed files are never imported
PIP := .venv/bin/python -m pip --disable-pip-version-check install --no-compile

# where it is turned off, each of the hundreds of processes of the tests would compile all that it imports
export PYTHONDONTWRITEBYTECODE :=

# one more than there are cores, as tests of the node mostly wait
PYTEST := .venv/bin/python -m pytest -q --numprocesses $(shell expr $$(nproc) + 1) --dist loadfile

# by the environment, so that the shell reads nothing into the names of files
export IMAGE VIDEO CAMERA

.PHONY: run test docs release coverage mutants soak
run: .venv/runtime
	.venv/bin/mega demo $(if $(IMAGE),"--image=$$IMAGE") $(if $(VIDEO),"--video=$$VIDEO") $(if $(CAMERA),"--camera=$$CAMERA")

test: .venv/development
	.venv/bin/ruff check .
	.venv/bin/mypy
	$(PYTEST)

docs: .venv/documentation
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build
	@echo "Open site/index.html; its search needs a server: python3 -m http.server --directory site, then http://localhost:8000"

release: .venv/development
	rm -rf dist
	.venv/bin/python -m build
	.venv/bin/twine check --strict dist/*
	.venv/bin/python -m pytest -q tests/test_package.py tests/test_wheel.py tests/test_licences.py

coverage: .venv/development
	$(PYTEST) --cov --cov-report term

mutants: .venv/development
	.venv/bin/mutmut run $(if $(ONLY),"$(ONLY)")
	.venv/bin/mutmut results | grep -v "not checked" || echo "No survivors"

soak: .venv/runtime
	.venv/bin/python -m mega_ros.ros.soak $(if $(MINUTES),--minutes $(MINUTES))

# No torch here: the runtime does not need it.
.venv/runtime: setup.py package.xml pyproject.toml | .venv/created
	@echo "Installing the runtime into .venv: about a minute"
	$(PIP) --editable '.[ros]'
	@touch $@

# torch is pinned, so that no other package selects another build of it
.venv/development: setup.py package.xml pyproject.toml | .venv/created
	@echo "Installing the runtime, torch and the development tools into .venv: a few minutes"
	$(PIP) torch==2.13.0 --editable '.[ros,train,export,dev]'
	@touch .venv/runtime $@

.venv/documentation: setup.py | .venv/created
	@echo "Installing the tools of the site into .venv"
	$(PIP) --editable '.[docs]'
	@touch $@

.venv/created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "mega_ros needs Python 3.10 or newer: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo "No virtual environment: install Python's venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@touch $@
