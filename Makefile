PYTHON ?= python3
BIN := .venv/bin
# Pinned versions; empty for the newest ones that fit.
CONSTRAINTS ?= constraints.txt
PIP_INSTALL := $(BIN)/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

.PHONY: setup demo space test test-quantization embed code card pages docs style quality

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(PIP_INSTALL) --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/dina compare space/examples/clear_1.png space/examples/clear_2.png \
		--prompt "a red circle and a blue square" --draws 8 --plot comparison.png

# Serve the page of the Space on http://127.0.0.1:7860.
space: setup
	$(BIN)/python space/app.py

test: setup
	$(BIN)/python -m pytest -m "slow or not slow"

# The quantisers print notes whenever they can be imported, so that they are installed apart.
test-quantization: setup
	$(PIP_INSTALL) --no-deps --target .venv/quantization bitsandbytes torchao
	PYTHONPATH=.venv/quantization $(BIN)/python -m pytest tests/modeling_dina/test_storage.py

# Ship a finished build of the small world: make embed BUILD=runs/world
embed:
	test -f $(BUILD)/model/config.json
	rm -rf modeling_dina/tiny
	cp -r $(BUILD)/model modeling_dina/tiny
	$(MAKE) code card

# Copy the code that travels with a model's weights into the embedded model's folder.
code: setup
	$(BIN)/python -m modeling_dina.remote_code modeling_dina/tiny

# Measure the embedded default on fresh scenes, and write its card.
card: setup
	$(BIN)/python -m model_card.evaluate_preferences --benchmark world --model modeling_dina/tiny \
		--out model_card/results/preferences_world.json
	$(BIN)/python -m model_card.write --model modeling_dina/tiny --results model_card/results \
		--results model_card/results/world_study --results model_card/results/alignment_study \
		--results modeling_dina/tiny/report.json --out modeling_dina/tiny/README.md

# Bring the generated tables of README.md and docs/ up to date.
pages: setup
	$(BIN)/python -m model_card.pages

# The documentation, into build/docs. It reads docstrings without importing the package, and has an environment of its
# own, so that it needs neither torch nor the other tools.
docs: .venv/docs/.done
	NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict --quiet

.venv/docs/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) mkdocs-material \
		"mkdocstrings[python]" ruff
	touch $@

style: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(MAKE) code

quality: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
