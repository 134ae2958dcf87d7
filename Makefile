# Two commands do everything on a machine with Python >= 3.11 and make: `make demo` and `make test`.

PYTHON ?= python3
TEST_PROCESSES ?= 3
VENV := .venv
IMAGE_BASE ?= build/image-base
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Without its cache Python would compile the farm's modules in each of the processes that tests start.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo check test lint tests clean lives fuzz graph mutants storm storm-ray drains growth damage disk-full lowest full-size bench-queue bench-recovery bench-million kills cluster image bench-simulation bench-services docs bench-page

demo: $(INSTALLED)
	$(BIN)/farm demo

# Before each commit, in a minute: lint, types, layers, and the tests that need no other process.
check: lint
	$(BIN)/pytest tests/unit -m "not slow"

test: lint tests

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/lua_lint.py

# Many tests wait for processes, so there may be more test processes than cores.
tests: $(INSTALLED)
	$(BIN)/pytest -n $(TEST_PROCESSES) --dist loadgroup

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name one with make PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

# Ten minutes: fifty times as many random lives of the queue as in the tests, other ones every time;
# and its file cut at each byte of a transaction.
lives: $(INSTALLED)
	FARM_DEEP=1 $(BIN)/pytest --timeout 0 tests/queue/test_model.py tests/queue/test_durability.py

# An hour of random requests to the gateway; ten seconds of them are a part of every test run.
fuzz: $(INSTALLED)
	FARM_FUZZ_SECONDS=3600 $(BIN)/pytest -s tests/gateway/test_gateway_fuzz.py

# Minutes and 6 GiB: full-size models with random weights, all tokens beside diffusers'.
full-size: $(INSTALLED)
	PYTHONPATH=tests/engine $(BIN)/python tests/engine/full_size.py

# Which package imports which: docs/packages.md.
graph: $(INSTALLED)
	$(BIN)/python tools/package_graph.py

# The documentation as a site in site/, without the internet; broken links are errors.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; its search needs a server: python3 -m http.server -d site"

# An hour and more: breaks the queue's scripts one by one and tells which breaks the tests find.
mutants: $(INSTALLED)
	$(BIN)/python tools/mutants.py

# Everything in a farm is killed while 20,000 jobs come in; then a checker looks at what is left.
storm: $(INSTALLED)
	$(BIN)/python tests/storm/storm.py

storm-ray: $(INSTALLED)
	$(BIN)/python tests/storm/storm.py --ray --jobs 1655 --kills 20 --server-kills 2

# Ten minutes: a hundred workers get SIGTERM under load; nothing may be lost or made twice.
drains: $(INSTALLED)
	FARM_DRAINS=100 $(BIN)/pytest --timeout 0 -k under_load tests/cluster/test_draining.py

# Two minutes: Ray's autoscaler, with its fake provider, brings machines for the work and takes them away.
growth: $(INSTALLED)
	FARM_GROWTH=1 $(BIN)/pytest --timeout 0 tests/cluster/test_autoscaler.py

# Processes of a farm are killed while it makes data sets for each sink; the sets must not differ.
kills: $(INSTALLED)
	$(BIN)/python tests/storm/kills.py

# A million renders with an engine that draws nothing, and the same through Ray Data.
bench-million: $(INSTALLED)
	$(BIN)/python bench/million.py --out bench/results/million-cpu.json

# As root, half an hour: a farm with Ray on four hosts made of network namespaces, and what can happen to it;
# then four more hosts, on which docs/several-machines.md is done as it says.
cluster: $(INSTALLED)
	$(BIN)/python tests/hosts/faults.py
	$(BIN)/python tests/hosts/follow_page.py

# As root, without Docker: the images' steps are done and a farm runs from them, over a Debian that
# debootstrap has put into IMAGE_BASE (tools/image.py).
image: $(INSTALLED)
	$(BIN)/python tools/image.py $(IMAGE_BASE)

# The tests with the oldest versions of other packages that pyproject.toml allows.
lowest:
	mkdir -p build
	$(PYTHON) tools/lowest.py > build/lowest.txt
	$(PYTHON) -m venv build/lowest
	build/lowest/bin/pip install --disable-pip-version-check --quiet -c build/lowest.txt -e '.[dev,nsfw]'
	build/lowest/bin/pytest -n $(TEST_PROCESSES) --dist loadgroup

# The queue's append-only file is cut and damaged at fifty random places.
damage: $(INSTALLED)
	$(BIN)/python tests/storm/damage.py

# As root: a small disk is filled and freed twenty times while jobs run.
disk-full: $(INSTALLED)
	$(BIN)/python tests/storm/disk_full.py

bench-recovery: $(INSTALLED)
	$(BIN)/python bench/recovery.py

# Valkey, a folder and HTTP on this machine, against TCP, TLS and Ceph.
bench-services: $(INSTALLED)
	$(BIN)/python bench/services.py

# A small farm, measured and simulated.
bench-simulation: $(INSTALLED)
	$(BIN)/python bench/simulation.py

bench-page: $(INSTALLED)
	$(BIN)/python bench/page.py

bench-queue: $(INSTALLED)
	$(BIN)/python bench/queue_rates.py
	$(BIN)/python bench/comparison/compare.py

clean:
	rm -rf $(VENV) demo-out site dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
