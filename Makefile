# Every target makes its own environment: a bare Python 3.11 and `make` are all that is needed.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-$(shell sha256sum pyproject.toml 2>/dev/null | cut -c1-12)

# Of `make attack`: the same two numbers give the same attacks.
SEED   ?= 0
COUNT  ?= 400

# Of `make gpu-pack`.
PACK           := cyclopts docstring-parser docutils duckdb nvidia-nvimgcodec-cu12 nvidia-nvjpeg-cu12 plotly rich-rst \
                  simplejpeg
PACK_PYTHON    ?= 3.12
PACK_PLATFORMS := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64
DATA           ?= ../shared/data

.PHONY: demo test test-slow examples attack coverage check format floor docs bench dist gpu gpu-dry gpu-pack clean

demo: $(STAMP)            ## the whole loop on scikit-learn's digits, with verdict and report
	$(BIN)/noisystudent demo

test: $(STAMP)            ## the test suite without the long checks
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-slow: $(STAMP)       ## the long checks: kills at random moments, whole runs
	$(BIN)/python -m pytest -m "slow and not gpu"

examples: $(STAMP)        ## the scripts in examples/, as they are
	$(BIN)/python -m pytest tests/test_examples.py

attack: $(STAMP)          ## kills, full disks, damaged files, odd inputs, faults: prints how many held
	ATTACK_SEED=$(SEED) ATTACK_COUNT=$(COUNT) $(BIN)/python -m pytest -n 2 --dist worksteal tests/attack

floor:                    ## tests of training with the oldest torch that pyproject.toml allows
	$(PYTHON) -m venv $(VENV)-floor
	$(VENV)-floor/bin/python -m pip install --quiet --disable-pip-version-check torch==2.6.0 torchvision==0.21.0
	$(VENV)-floor/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(VENV)-floor/bin/python -m pytest -m "not slow and not gpu" tests/train tests/test_laws.py tests/test_distributed.py

coverage: $(STAMP)        ## the test suite, and the share of the package's lines and branches that it runs
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu" --hypothesis-profile=ci --cov --cov-report=term

check: $(STAMP)           ## what a reviewer would complain about first
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP)            ## the pages of docs/ as a site, to docs/_build; a warning is an error
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs docs/_build

bench: $(STAMP)           ## benchmarks that need no GPU, one after the other, to benchmarks/results/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[bench]"
	BIN=$(BIN) bash benchmarks/bench.sh

dist:                     ## wheel and sdist to dist/, checked, installed into a fresh environment, and tried there
	rm -rf build dist $(VENV)-dist
	$(PYTHON) -m venv $(VENV)-dist
	$(VENV)-dist/bin/python -m pip install --quiet --disable-pip-version-check build twine
	$(VENV)-dist/bin/python -m build
	$(VENV)-dist/bin/twine check --strict dist/*
	$(VENV)-dist/bin/python tests/distribution.py dist

gpu:                      ## everything that needs a GPU, in one call, with the Python that is there; OUT names a folder
	$(PYTHON) benchmarks/gpu.py $(if $(OUT),--out $(OUT))

gpu-dry: $(STAMP)         ## the same calls on the CPU, with tiny sizes and random images
	$(BIN)/python benchmarks/gpu.py --dry --out .cache/benchmarks

gpu-pack:                 ## what a machine without a network may lack, into .gpu/; DATA names a folder of images
	mkdir -p .gpu
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --dest .gpu \
	  --implementation cp --python-version $(PACK_PYTHON) $(foreach tag,$(PACK_PLATFORMS),--platform $(tag)) $(PACK)
	for set in cifar10 tinyimagenet/other-classes.tar.xz; do \
	  mkdir -p .gpu/$$(dirname $$set) && cp -R $(DATA)/$$set .gpu/$$set || exit; done
	chmod -R u+w .gpu && du -sh .gpu

# torch and torchvision are installed as a pair first: versions that do not match fail at import. The oracle of the
# corruptions asks for an OpenCV with windows, which the headless one here replaces.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps imagecorruptions-imaug==1.1.5
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-dist $(VENV)-floor build dist docs/_build *.egg-info
