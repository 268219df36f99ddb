# The commands of the project; `make` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The tests start hundreds of processes, of which none should compile the libraries anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo demo-flights kafka test check bench clean

help:             ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | expand -t 16

setup: $(READY)   ## a virtual environment with all that the project needs

demo: setup       ## the whole loop on UCI Adult: 200 requests, four retrainings
	$(BIN)/tidemill demo adult --directory demo

demo-flights: setup  ## a year's flights, fast-forwarded: a frozen model beside one that is retrained
	$(BIN)/tidemill demo flights --directory demo-flights

kafka: setup      ## a Kafka broker on 127.0.0.1:9092 until Ctrl-C; needs Java 17 and Maven
	$(BIN)/python -m tidemill.testing.kafka_broker --folder kafka-data

test: setup check ## everything that CI runs
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m 'not alone'
	$(BIN)/python -m pytest -m alone
	$(BIN)/python -m bench --small

check: setup      ## lint, format, types
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

bench: setup      ## the figures, as ratios measured in one run; needs half an hour and nothing beside it
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[all,dev,bench]'
	$(BIN)/python -m bench

clean:            ## remove what the commands above made
	rm -rf $(VENV) demo demo-flights kafka-data bench/results

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14) and "tidemill needs Python 3.11 to 3.13; set PYTHON=python3.12, say")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[all,dev]'
	touch $@
