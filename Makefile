# Everything runs in .venv, which the first target that needs it makes. PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

# The public data sets of docs/data.md; measuring and training need them, demo and test don't.
LATENTGUARD_DATA ?= data
D := $(LATENTGUARD_DATA)

.PHONY: demo test check bench bench-encrypted bench-service fuzz-service bench-screening bench-gpu test-lite train evaluate evaluate-encrypted passkey clean

demo: $(VENV)/installed
	$(RUN) inference.py --file_path datasets/sample_prompts.txt

test: $(VENV)/installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile

check: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/installed-dev
	$(RUN) -m benchmarks --plots build/bench

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

# 64 clients at once, three minutes; and 10,000 malformed requests. Both on this machine alone.
bench-service: $(VENV)/installed-dev
	$(RUN) -m benchmarks.service

fuzz-service: $(VENV)/installed-dev
	$(RUN) -m benchmarks.service_fuzz

bench-screening: $(VENV)/installed-dev
	$(RUN) -m benchmarks.screening

# On a GPU: prompts a second, one prompt's latency, training steps.
bench-gpu: $(VENV)/installed-dev
	$(RUN) -m benchmarks.gpu

# The light install, in an environment of its own that has no PyTorch.
test-lite: $(VENV)/installed-dev
	LATENTGUARD_TEST_INSTALL=1 $(RUN) -m pytest tests/test_lite_install.py

evaluate-encrypted: $(VENV)/installed-dev
	$(RUN) -m privacy.encrypted_inference evaluate --model mnist --data $(D)/mnist --skip 8000 --encrypted 500
	$(RUN) -m privacy.encrypted_inference evaluate --model mnist --data $(D)/mnist --skip 8000 --encrypted 2000 \
	  --layout batched

# Fine-tunes MiniLM on plain and on encrypted text, some 20 minutes on two cores; interrupted, it goes on.
passkey: $(VENV)/installed-dev
	mkdir -p build/passkey
	test -d build/passkey/minilm || $(RUN) -m latentguard encoder --output build/passkey/minilm
	test -f build/passkey/key || \
	  (umask 077; $(RUN) -c "import secrets; print(secrets.token_urlsafe(24))" > build/passkey/key)
	$(RUN) -m privacy passkey finetune --task classification --model build/passkey/minilm \
	  --train $(D)/sst2/train.tsv --eval $(D)/sst2/dev.tsv --limit 16000 --epochs 2 --learning-rate 2e-4 \
	  --passkey-file build/passkey/key --output build/passkey/sst2 --compare --resume
	$(RUN) -m privacy passkey finetune --task tagging --model build/passkey/minilm \
	  --train $(D)/conll2003/train.txt --eval $(D)/conll2003/test.txt --limit 5000 --epochs 2 --batch-size 16 \
	  --learning-rate 3e-4 --passkey-file build/passkey/key --output build/passkey/conll2003 --compare --resume

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
