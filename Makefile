# The targets make their .venv from pyproject.toml and constraints.txt, the versions that CI tested.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := demo

.PHONY: demo figures notebook test fuzz lint read mutants table1 rehearsal parity golden bench clean

demo: $(VENV)/installed
	rm -rf $(DEMO)
	$(RUN) -m minikits.phantoms --out $(DEMO)/data --cases 40
	$(RUN) -m minikits.phantoms --out $(DEMO)/scans --cases 6 --seed 2
	$(RUN) train.py --recipe demo --arch residual --fold 0 --data $(DEMO)/data --out $(DEMO)/runs
	$(RUN) predict.py --in $(DEMO)/scans --out $(DEMO)/masks --model $(DEMO)/runs/residual --no-mirroring
	$(RUN) evaluate.py --pred $(DEMO)/masks --ref $(DEMO)/scans --out $(DEMO)/report

# those of docs/walkthrough.md; with `--run RUN_FOLDER` of a network that is trained already
figures: $(VENV)/installed
	$(RUN) docs/make_figures.py

notebook:
	$(PYTHON) docs/make_notebook.py

test: $(VENV)/installed
	$(RUN) -m pytest -q

fuzz: $(VENV)/installed
	$(RUN) tests/fuzz.py

# small faults in the code, one at a time, that the tests must notice; an hour or so
mutants: $(VENV)/installed
	$(RUN) tests/mutants/run.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyrefly check --python-interpreter-path $(RUN)

# figures of how plainly the code reads, beside those of others; a report, no gate
read: $(VENV)/installed
	$(RUN) benchmarks/read.py

# the paper's comparison in small, around the kidneys of ../shared/kits19 if they are there; half an hour
table1: $(VENV)/installed
	$(RUN) benchmarks/table1.py

# all that repeats the paper's table, in small and on phantoms; stopped or killed, it goes on from there
rehearsal: $(VENV)/installed
	$(RUN) -m minikits.phantoms --out rehearsal/data --cases 10
	$(RUN) benchmarks/reproduce.py --data rehearsal/data --out rehearsal/runs --recipe benchmarks/rehearsal.json

# nnU-Net v1 would bring 23 packages and another torch: only what it imports here, in an environment of its own.
parity: $(VENV)-parity/installed
	$(VENV)-parity/bin/python -W ignore benchmarks/parity.py

# needs KITS19_STARTER_CODE, a checkout of neheller/kits19
golden: $(VENV)-parity/installed
	$(VENV)-parity/bin/python -W ignore benchmarks/golden.py

bench: $(VENV)-bench/installed
	$(VENV)-bench/bin/python -W ignore benchmarks/training.py
	$(VENV)-bench/bin/python -W ignore benchmarks/prediction.py
	$(VENV)-bench/bin/python benchmarks/reading.py

$(VENV)-bench/installed: pyproject.toml constraints.txt benchmarks/bench.txt
	$(PYTHON) -m venv $(VENV)-bench
	$(VENV)-bench/bin/pip install --quiet --constraint constraints.txt --editable '.[figures,test]'
	$(VENV)-bench/bin/pip install --quiet --no-deps --requirement benchmarks/bench.txt
	touch $@

$(VENV)-parity/installed: pyproject.toml constraints.txt benchmarks/parity.txt
	$(PYTHON) -m venv $(VENV)-parity
	$(VENV)-parity/bin/pip install --quiet --constraint constraints.txt --editable '.[figures,test]'
	$(VENV)-parity/bin/pip install --quiet --no-deps --requirement benchmarks/parity.txt
	touch $@

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt --editable '.[figures,test]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-parity $(VENV)-bench $(DEMO) table1 rehearsal
