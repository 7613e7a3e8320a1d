# The two commands of the README are `make reproduce` and `make test`; `make help` lists the others.
# Every target sets up what it needs by itself: Python 3.11 or newer, git and make are enough.
SHELL := /bin/sh
.DEFAULT_GOAL := help

# The interpreter that makes the environment, for example PYTHON=/opt/python3.12/bin/python3. Found by itself when empty.
PYTHON ?=
# The knobs of `make reproduce`: RATIO=0.5, ARGS="-p seed 3 -p method sfp".
RATIO ?= 0.7
ARGS ?=
# The run that `make demo` takes its network from; the one that workflow/demo.py names when empty.
RUN ?=
# The knobs of `make campaign`: the file of runs, how many cores, more words for Snakemake (CAMPAIGN="records -n").
GRID ?= workflow/ucm.yaml
CORES ?= all
CAMPAIGN ?=
# Options for pytest: `make test PYTEST="-k fuse -x"`; how many processes `make test` takes (0: none but its own, for --pdb).
PYTEST ?=
# One thread each, since processes with several threads that share the cores wait for each other.
WORKERS ?= auto

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.companion-stamp
BOOK := $(PY) -c 'from jupyter_book.cli.main import main; main()' build _build/book-source --path-output . -q

# The kernel "python3" must be the environment's own: a kernel of that name in the user's or the system's Jupyter folders
# would run another interpreter, and a user's IPython start-up files would change what a cell prints.
export JUPYTER_DATA_DIR := $(CURDIR)/_build/jupyter/data
export JUPYTER_CONFIG_DIR := $(CURDIR)/_build/jupyter/config
export IPYTHONDIR := $(CURDIR)/_build/jupyter/ipython
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Notebooks are compared from their own folder, so a relative root of the images is made absolute here. Not by abspath,
# for which a name with a space is two.
ifneq ($(filter-out /% ~%,$(firstword $(BPL_DATA))),)
export BPL_DATA := $(CURDIR)/$(BPL_DATA)
endif
# Threads that wait give their core away: on a shared machine a spinning wait makes training many times slower.
export OMP_WAIT_POLICY := passive
unexport JUPYTER_PATH PYTHONHOME PYTHONPATH

.PHONY: help setup reproduce test test-long book notebooks campaign demo clean

help:
	@echo 'make reproduce   run notebooks/ucm.ipynb at one pruning ratio and build the book with that run in it'
	@echo '                 (RATIO=0.5, ARGS="-p seed 3 -p method sfp" change the run)'
	@echo 'make test        the tests, the notebooks compared cell by cell with their committed outputs included'
	@echo 'make test-long   the tests that take minutes'
	@echo 'make book        build the book from the committed notebooks, warnings being errors'
	@echo 'make notebooks   execute the committed notebooks anew, after a change of the library or of records'
	@echo 'make campaign    run what GRID=workflow/ucm.yaml still lacks, then the notebooks and the book from it (Snakemake)'
	@echo 'make demo        make the demo network of bpl predict anew, from a recorded run on real images (RUN=its name)'
	@echo 'make setup       only make the environment in $(VENV)'
	@echo 'make clean       remove _build: the book, your executed notebooks, checkpoints of unfinished runs'

# The environment is made anew when it does not start (another machine, a removed Python), and its packages are installed
# again when pyproject.toml, constraints.txt or the folder of the checkout has changed since the stamp was written.
setup:
	@mkdir -p '$(IPYTHONDIR)'
	@set -e; \
	if ! $(PY) -c 'import sys' 2>/dev/null; then \
	    python=''; \
	    for candidate in $(if $(PYTHON),$(PYTHON),python3.11 python3 python3.12 python3.13 python); do \
	        if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo 'No Python 3.11 or newer was found$(if $(PYTHON), as PYTHON=$(PYTHON)). Install one, or name it: make setup PYTHON=/path/to/python3.11' >&2; \
	        exit 1; \
	    fi; \
	    echo "==> Making the environment in $(VENV) with $$($$python -V)"; \
	    if ! $$python -m venv --clear $(VENV); then \
	        echo "$$python cannot make a virtual environment here; on Debian and Ubuntu the package python3-venv is missing." >&2; \
	        exit 1; \
	    fi; \
	fi; \
	state=$$(printf '%s ' '$(CURDIR)'; cat pyproject.toml constraints.txt | cksum); \
	if [ "$$state" != "$$(cat $(STAMP) 2>/dev/null)" ]; then \
	    echo '==> Installing the library and its tools into $(VENV) (some minutes the first time)'; \
	    $(PY) -m pip install -qq -c constraints.txt -e '.[export,fcs,book,test]'; \
	    printf '%s\n' "$$state" > $(STAMP); \
	fi

reproduce: setup
	@echo '==> Running notebooks/ucm.ipynb with ratio $(RATIO)$(if $(ARGS), and $(ARGS))'
	@$(PY) -m papermill notebooks/ucm.ipynb _build/ucm.ipynb -k python3 --log-output --no-progress-bar -p ratio $(RATIO) $(ARGS)
	@echo '==> Building the book with your run in it'
	@rm -rf _build/html _build/.doctrees
	@$(PY) book/stage.py --executed _build
	@$(BOOK) > _build/book.log
	@echo '==> Done. Open this page in a browser:'
	@echo '_build/html/notebooks/ucm.html'

test: setup
	@echo '==> Running the tests and comparing the notebooks with their committed outputs'
	@$(if $(filter-out 0,$(WORKERS)),OMP_NUM_THREADS=1) $(PY) -m pytest --nbval -n $(WORKERS) --maxprocesses 4 --dist loadfile $(PYTEST)

test-long: setup
	@echo '==> Running the tests that take minutes'
	@$(PY) -m pytest -m slow $(PYTEST)

book: setup
	@echo '==> Building the book from the committed notebooks'
	@rm -rf _build/html _build/.doctrees
	@$(PY) book/stage.py
	@$(BOOK) -W -n --keep-going > _build/book.log
	@echo '==> Done. Open this page in a browser:'
	@echo '_build/html/index.html'

notebooks: setup
	@echo '==> Executing the notebooks anew, on drawn scenes and the recorded runs'
	@$(PY) book/refresh.py

campaign: setup
	@$(PY) -c 'import snakemake, snakemake_executor_plugin_kubernetes' 2>/dev/null || { \
	    echo '==> Installing the campaign engine into $(VENV)'; \
	    $(PY) -m pip install -qq -c constraints.txt -e '.[campaign]'; \
	}
	@echo '==> Running what $(GRID) lacks; another start goes on from here'
	@$(PY) -m snakemake --quiet rules host --cores $(CORES) $(CAMPAIGN) --config grid='$(GRID)'

demo: setup
	@echo '==> Making the demo network that comes with the library'
	@$(PY) workflow/demo.py $(RUN)

clean:
	@rm -rf _build .snakemake
