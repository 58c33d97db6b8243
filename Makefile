# make build      the extension, in place (only what changed); needs the environment of `pip install -e '.[test,dev]'`
# make test       the default tests        make lint       ruff, mypy, clang-format, generated files
# make bench      benchmarks; OP=decode selects by name
# make asan tsan  the tests under sanitizers, in an environment of their own below build-asan/, build-tsan/
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)
SYSTEM_PYTHON ?= python3
CXX_SOURCES = $(wildcard csrc/*.h csrc/*.cpp csrc/cuda/*.h csrc/cuda/*.cuh csrc/cuda/*.cu csrc/cuda/host/*)

.PHONY: build lint format test bench asan tsan clean

build:
	$(PYTHON) setup.py -q build_ext --inplace

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy fastae
	$(dir $(PYTHON))clang-format --dry-run -Werror $(CXX_SOURCES)
	$(PYTHON) -m fastae.codegen --check

format:
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .
	$(dir $(PYTHON))clang-format -i $(CXX_SOURCES)

test:
	$(PYTHON) -m pytest -q

bench:
	$(PYTHON) -m pytest benchmarks -q -m "" $(if $(OP),-k "$(OP)")

# A copy of the working tree with a sanitised extension, so that the ordinary build stays as it is.
define sanitised_copy
	rm -rf build-$(1)/src build-$(1)/report.*
	mkdir -p build-$(1)/src
	git ls-files -z -co --exclude-standard | tar -c --null -T - --ignore-failed-read | tar -x -C build-$(1)/src
	test -x build-$(1)/venv/bin/python || $(SYSTEM_PYTHON) -m venv build-$(1)/venv
	FASTAE_SANITIZE=$(2) build-$(1)/venv/bin/pip install -q -e 'build-$(1)/src[test]'
endef

# pytest -s: the report of a crash is written at once; log_path: pytest cannot swallow it. libstdc++ is preloaded
# because the first C++ exception aborts without it. FASTAE_SANITIZE: tests compile the device kernels for the host alike.
asan:
	$(call sanitised_copy,asan,address)
	cd build-asan/src && FASTAE_SANITIZE=address LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
		PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0:log_path=$(CURDIR)/build-asan/report \
		UBSAN_OPTIONS=print_stacktrace=1:log_path=$(CURDIR)/build-asan/report ../venv/bin/python -m pytest -q -s
	@! cat build-asan/report.* 2>/dev/null

# Tests about fork are left out: a process that forked with threads is beyond what this tool supports.
tsan:
	$(call sanitised_copy,tsan,thread)
	cd build-tsan/src && LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" OPENBLAS_NUM_THREADS=1 \
		TSAN_OPTIONS=exitcode=66:log_path=$(CURDIR)/build-tsan/report \
		../venv/bin/python -m pytest -q -s -k "thread and not fork"
	@! cat build-tsan/report.* 2>/dev/null

clean:
	rm -rf build build-asan build-tsan dist *.egg-info fastae/_core*.so fastae/_build.json fastae/backends/cuda/kernels_*
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
