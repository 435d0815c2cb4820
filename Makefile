# Two commands do everything; see README.md. `make demo SAMPLE=path` takes a file of yours.
.PHONY: demo test setup

SAMPLE ?=

setup:
	@.ci/setup

demo: setup
	@.venv/bin/cuckoo demo $(SAMPLE)

test:
	@.ci/setup test
	@.venv/bin/tox run-parallel --notest --parallel 2
	@.venv/bin/tox run
