PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test embed style quality

setup: .venv/.done

.venv/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/dina compare space/examples/a.png space/examples/b.png \
		--prompt "$$(cat space/examples/prompt.txt)" --draws 8 --plot comparison.png

test: setup
	$(BIN)/python -m pytest -m "slow or not slow"

# Ship a finished build of the small world: make embed BUILD=runs/world
embed:
	rm -rf modeling_dina/tiny
	cp -r $(BUILD)/model modeling_dina/tiny
	cd modeling_dina/tiny && for file in *.py; do ln -sf ../$$file $$file; done

style: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
