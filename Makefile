# Every target takes PYTHON, the interpreter of an environment where `pip install -e ".[test,lint]"` has run.
PYTHON ?= python
CASES ?= 10000
RUNS ?= 200
MINUTES ?= 30
SEED ?= 0

.PHONY: test proof lint sanitize mutants inspect fuzz kill soak bench-cpu page-load image-check

test:
	$(PYTHON) -m pytest

# The long proofs that `pytest` alone leaves out.
proof:
	$(PYTHON) -m pytest -m proof

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy -p adaptive_window
	$(PYTHON) -m mypy -p tools

# Random forward and backward cases of the shipped kernels under the interpreter sanitizer (tests/support/sanitizer.py).
sanitize:
	TRITON_INTERPRET=1 PYTHONPATH=tests/support $(PYTHON) -m sanitize_kernels --cases $(CASES) --seed $(SEED)

# Bugs put into copies of the shipped kernels, one at a time; fails if one that is no equivalent survives.
mutants:
	TRITON_INTERPRET=1 PYTHONPATH=tests/support $(PYTHON) -m mutants

# Training runs killed by SIGKILL at random moments and resumed: each has to end bit-equal to the one left alone.
kill:
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 $(PYTHON) -m kill_runs --runs $(RUNS) --seed $(SEED)

# A long run with random kills, signals and restarts: its end has to be that of an uninterrupted one, its memory flat.
soak:
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 $(PYTHON) -m soak --minutes $(MINUTES) --seed $(SEED)

# Registers, spills, shared memory and instructions of every shipped kernel; needs no GPU.
inspect:
	$(PYTHON) -m tools.inspect_kernels --arch 90
	$(PYTHON) -m tools.inspect_kernels --arch 80

# Damaged audio files, read by the shipped reader in a child process (tests/support/fuzz_audio.py).
fuzz:
	PYTHONPATH=tests/support $(PYTHON) -m fuzz_audio --cases $(CASES) --seed $(SEED)

# docs/results.md's measured tables and docs/benchmarks/*.svg anew, on a machine that does nothing else: about ten minutes on two
# cores. Two threads first, then the operations with one; the static table last, since it measures nothing.
bench-cpu:
	$(PYTHON) benchmarks/run.py --device cpu --threads 2 --save --parts ops attention step scaling codec
	$(PYTHON) benchmarks/run.py --device cpu --threads 1 --save --parts ops --batch 8 --frame-rates 50
	$(PYTHON) benchmarks/run.py --device cpu --threads 2 --save --update --parts static
	$(PYTHON) benchmarks/report.py --write docs/results.md --plots docs/benchmarks

# Twenty visitors of the page at once (tests/support/page_load.py): what each waits for, and the server's memory.
page-load:
	PYTHONPATH=tests/support OMP_NUM_THREADS=1 $(PYTHON) -m page_load

# The Dockerfile's own steps, without an engine, in a root that debootstrap makes; needs root and a Debian archive.
image-check:
	PYTHONPATH=tests/support $(PYTHON) -m image_check
