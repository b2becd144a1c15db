# Everything runs in .venv, which the first target that needs it makes. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# The public data sets of docs/data.md; measuring and training need them, demo and test don't.
LATENTGUARD_DATA ?= data
D := $(LATENTGUARD_DATA)

.PHONY: demo test check bench bench-encrypted train evaluate evaluate-encrypted clean

demo: $(VENV)/installed
	$(RUN) inference.py --file_path datasets/sample_prompts.txt

test: $(VENV)/installed-dev
	$(RUN) -m pytest

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/installed-dev
	$(RUN) -m benchmarks

train: $(VENV)/installed-dev
	$(RUN) train.py --data $(D)/copro/coprov2_train.csv $(D)/copro/coprov2_test.csv \
	  --concept-names $(D)/copro/concepts_id.json $(D)/copro/concepts_ood.json \
	  --exclude-concepts $(D)/copro/concepts_ood.json \
	  --exclude-prompts $(D)/copro/copro_id_dev.csv $(D)/copro/copro_ood_dev.csv \
	  $(D)/prompts/unsafe_diffusion_dev.csv $(D)/prompts/i2p_dev.csv \
	  $(D)/prompts/risky_dev.csv $(D)/prompts/benign_dev.txt $(D)/prompts/wild_dev.txt \
	  --negatives $(D)/prompts/benign_train.txt $(D)/prompts/wild_train.txt \
	  --calibrate $(D)/prompts/benign_dev.txt --layers 2 4 6 --grammar 20000 \
	  --replacements datasets/replacements.json --epochs 2 \
	  --false-positive-rate 0.0065 --output weights/retrained $(TRAIN_FLAGS)

evaluate: $(VENV)/installed-dev
	$(RUN) -m latentguard evaluate --data $(D)/copro/copro_id_dev.csv --concepts $(D)/copro/concepts_id.json \
	  --reference latentguard_score
	$(RUN) -m latentguard evaluate --data $(D)/copro/copro_ood_dev.csv --concepts $(D)/copro/concepts_ood.json \
	  --reference latentguard_score
	$(RUN) -m latentguard evaluate --data $(D)/prompts/unsafe_diffusion_dev.csv $(D)/prompts/i2p_dev.csv \
	  $(D)/prompts/benign_dev.txt $(D)/prompts/wild_dev.txt $(D)/prompts/risky_dev.csv --reference latentguard_score

bench-encrypted: $(VENV)/installed-dev
	$(RUN) -m privacy.encrypted_inference bench

evaluate-encrypted: $(VENV)/installed-dev
	$(RUN) -m privacy.encrypted_inference evaluate --model mnist --data $(D)/mnist --skip 8000 --encrypted 500
	$(RUN) -m privacy.encrypted_inference evaluate --model mnist --data $(D)/mnist --skip 8000 --encrypted 2000 \
	  --layout batched

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -m pip install --quiet --editable .
	touch $@

# torchvision first settles which torch fits it.
$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml
	$(RUN) -m pip install --quiet --upgrade "pip>=25.1"
	$(RUN) -m pip install --quiet --editable ".[all]" --group dev
	touch $@ $(VENV)/installed
