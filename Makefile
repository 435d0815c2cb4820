# `make demo` and `make test` do everything; see README.md. `make demo SAMPLE=path` takes a file of yours.
.PHONY: audit demo sbom setup test

SAMPLE ?=

setup:
	@.ci/setup

demo: setup
	@.venv/bin/cuckoo demo $(SAMPLE)

# what an installation is made of, as dist/sbom.cdx.json
sbom: setup
	@.venv/bin/tox -e sbom

# its known holes; asks the internet
audit: setup
	@.venv/bin/tox -e audit

test:
	@.ci/setup test
	@.venv/bin/tox run-parallel --notest --parallel 2
	@.venv/bin/tox run
