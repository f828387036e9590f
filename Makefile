# Two commands do everything, on a machine with Python ≥ 3.11 and make:
#   make demo    sets up, trains a prefix on the shipped reference model, writes demo/report.html
#   make test    sets up, runs every check
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
WHEEL_BIN := .venv-wheel/bin

# Debian packages that a few tests need. Without them, or the right to install them, those tests are skipped and say so.
SYSTEM := chromium-driver postgresql prometheus strace

.PHONY: demo test system install lint types imports suite wheel wheel-suite oldest fuzz benchmarks torture clean

demo: install
	$(BIN)/apl-guard demo --output demo

test: system
	$(MAKE) --jobs 2 lint imports types wheel-suite
	$(MAKE) suite

system:
	@dpkg -s $(SYSTEM) > /dev/null 2>&1 || { \
		test "$$(id -u)" = 0 && command -v apt-get > /dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(SYSTEM) > /dev/null; \
	} || echo "not installed: $(SYSTEM); tests that need them are skipped"

install: .venv/installed

# pip compiles on one core what it installs, for a minute or two. What Python cannot compile there are templates.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install --no-compile --constraint constraints.txt --editable ".[eval,faces,names,ner,postgres,regex,remote,signing,otel,dev]"
	$(BIN)/python -m compileall -qq -j 0 .venv/lib > /dev/null || true
	touch $@

lint: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy

imports: install
	$(BIN)/lint-imports

# One process of one thread for each processor, up to four: more would wait for memory and the disk.
suite: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

wheel: install
	rm -rf dist
	umask 022; SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2> /dev/null || date +%s) \
		$(BIN)/python -m build --wheel --outdir dist . > /dev/null

# The wheel stands alone in a second environment, which borrows the dependencies of the first. Only the files that have a
# test for it are read.
wheel-suite: wheel
	rm -rf .venv-wheel
	$(PYTHON) -m venv .venv-wheel
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(WHEEL_BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/dependencies.pth"
	$(WHEEL_BIN)/python -m pip --disable-pip-version-check --quiet install --no-deps dist/*.whl
	APL_GUARD_TEST_WHEEL=1 $(WHEEL_BIN)/python -P -m pytest -m smoke -o pythonpath= $$(grep -lr --include="*.py" mark.smoke tests)

# On demand: the oldest versions that pyproject.toml allows, in an environment of their own. It wants Python 3.11 or 3.12, and
# torch of that age comes with 3 GB of CUDA. Left out are the tests of pipelines that diffusers of that age does not have or
# cannot offload without a GPU, one that computes in float64, which version 4 of transformers cannot, two of how much a
# random model of that age learns, and one of the packages of all extras.
OLDEST := tests $(addprefix --ignore=tests/,test_gliner.py benchmarks fuzz trust $(addprefix trainer/,attacks bench demo evaluate peers personalise) \
	trainer/model/test_pipeline_code.py trainer/train/test_train_any.py adapters/test_exported_prefix.py \
	$(addprefix adapters/diffusers/test_,arguments.py bypasses.py changes_during_a_call.py disguises.py families.py prompts_beside_pictures.py \
	put_in_afterwards.py rewriting.py variants.py ways_of_running.py))
oldest:
	$(PYTHON) -m venv build/oldest
	build/oldest/bin/python -m pip --disable-pip-version-check --quiet install --constraint constraints-oldest.txt \
		--editable ".[eval,faces,names,postgres,regex,remote,otel,dev]"
	OMP_NUM_THREADS=1 build/oldest/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal $(OLDEST) \
		--deselect tests/adapters/inject/test_inject.py::test_gradients_flow_to_the_vectors \
		--deselect tests/adapters/diffusers/test_meddling.py::test_with_the_text_encoder_offloaded_in_groups \
		--deselect tests/adapters/diffusers/test_meddling.py::test_weights_on_the_disk_are_named \
		--deselect tests/test_packaging.py::test_every_package_that_is_imported_is_named \
		--deselect tests/trainer/train/test_cli_train.py::test_a_prefix_that_hides_nobody_is_not_passed_over_in_silence \
		--deselect "tests/trainer/train/test_train_flow.py::test_the_guarded_pipeline_answers_as_the_neutral_prompt_does[flux dev]"

# On demand: coverage-guided fuzzing of what reads files from strangers.
FUZZ_SECONDS ?= 60
fuzz: install
	-$(PIP) install --constraint constraints.txt --editable ".[fuzz]"
	PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_prefix.py -max_total_time=$(FUZZ_SECONDS) build/fuzz/prefix
	PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_audit.py -max_total_time=$(FUZZ_SECONDS) build/fuzz/audit
	PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_receipt.py -max_total_time=$(FUZZ_SECONDS) build/fuzz/receipt
	PYTHONPATH=. $(BIN)/python tests/fuzz/fuzz_policy.py -max_total_time=$(FUZZ_SECONDS) build/fuzz/policy

# On demand, on a machine that does nothing else: what the guard and its log cost, beside a peer where it can be installed.
benchmarks: install
	test -e build/peer/installed || { $(PYTHON) -m venv build/peer && \
		build/peer/bin/python -m pip --disable-pip-version-check --quiet install nemoguardrails==0.24.1 && \
		touch build/peer/installed; } || echo "nemoguardrails cannot be installed; measured without it"
	$(BIN)/python -m tests.benchmarks.overhead $$(test ! -e build/peer/installed || echo --peer build/peer/bin/python)
	$(BIN)/python -m tests.benchmarks.audit_log
	$(BIN)/python -m tests.benchmarks.names

# On demand: the tests of the audit log that kill, corrupt and starve it, in full.
torture: install
	APL_GUARD_TORTURE=1 $(BIN)/python -m pytest tests/audit

clean:
	rm -rf .venv .venv-wheel build dist *.egg-info demo
