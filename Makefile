PYTHON ?= python3
BIN := .venv/bin
# The lock file with all versions; empty for the newest ones that fit.
CONSTRAINTS ?= constraints.txt
OPTIONS := --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))
# Byte code is compiled when a module is first imported.
PIP_INSTALL = $(BIN)/pip install $(OPTIONS) --no-compile
# By uv, which is several times as fast; by pip where uv is missing or fails, such as where only pip knows an index.
define install
	$(BIN)/uv pip install $(OPTIONS) --python $(BIN)/python $(1) || $(PIP_INSTALL) $(1)
endef

.PHONY: setup lock demo space deploy test test-quantization embed code card pages docs style quality

# Everything that development needs.
setup: .venv/.done

.venv/.done: .venv/.package
	$(call install,--editable ".[dev]")
	touch $@

# The package alone. torch is installed by pip, whose settings say which build this machine takes; uv then leaves it.
.venv/.package: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) uv || echo "uv could not be installed: pip takes its place" >&2
	$(call install,--editable .)
	touch $@

# Write constraints.txt. Versions that still fit remain; for newer ones: make lock UPGRADE="--upgrade-package NAME".
lock: .venv/.package
	$(BIN)/uv pip compile --quiet --universal --all-extras --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" $(UPGRADE) --output-file constraints.txt pyproject.toml

demo: .venv/.package
	$(BIN)/dina compare space/examples/clear_1.png space/examples/clear_2.png \
		--prompt "a red circle and a blue square" --draws 8 --plot comparison.png

# Serve the page of the Space on http://127.0.0.1:7860.
space: setup
	$(BIN)/python space/app.py

# Put the Space on the Hub, together with the package: make deploy SPACE=OWNER/NAME
HF_ENDPOINT ?= https://huggingface.co
deploy: setup
	test -n "$(SPACE)"
	rm -rf build/space build/lib
	mkdir -p build
	cp -r space build/space
	$(BIN)/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/space .
	cd build/space && echo "dina-lrm[space] @ $(HF_ENDPOINT)/spaces/$(SPACE)/resolve/main/$$(ls *.whl)" >requirements.txt
	$(BIN)/hf upload $(SPACE) build/space . --type space --exclude "**/__pycache__/**" --delete "*.whl"

test: setup
	$(BIN)/python -m pytest -m "slow or not slow"

# The quantisers print notes whenever they can be imported, so that they are installed apart.
test-quantization: setup
	$(call install,--no-deps --target .venv/quantization bitsandbytes torchao)
	PYTHONPATH=.venv/quantization $(BIN)/python -m pytest -m "slow or not slow" \
		tests/modeling_dina/test_storage.py tests/model_card/test_measure_precision.py

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
	$(BIN)/python -m model_card.evaluate_preferences --benchmark world_flaws --model modeling_dina/tiny --draws 1 \
		--out model_card/results/preferences_world_flaws.json
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
	.venv/docs/bin/pip install $(OPTIONS) mkdocs-material "mkdocstrings[python]" ruff
	touch $@

style: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(MAKE) code

quality: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
