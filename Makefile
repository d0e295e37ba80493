# The few commands that a newcomer needs. Every target sets up what it uses.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
QUICK := runs/quickstart
REAL := runs/real_speech
TINY := runs/tiny
TINY_RECIPES := conf/pretrain_tiny.yaml conf/pretrain_tiny_lasr.yaml conf/train_tiny.yaml
TINY_MANIFESTS = $(QUICK)/speech/metadata.csv $(foreach corpus,speech_commands_9 arabic_commands_10,\
	$(SHARED)/$(corpus)/metadata.csv)
TINY_ROOT ?= $(TINY)/root
SYNTHETIC := runs/eval_synthetic
ANALYSIS := runs/analysis_synthetic
MTL := runs/mtl_real
WHISPER ?= openai/whisper-base
SHARED := ../shared/data
# make root-model: which upstream, what the model is called, where it is put (`.`: into this repository)
UPSTREAM ?= openai/whisper-tiny.en
ROOT_NAME ?= wavcse-whisper
ROOT_INTO ?= .
ROOT := runs/root
ROOT_MANIFESTS = $(ROOT)/speakers.csv $(SHARED)/lid_index.csv $(foreach corpus,speech_commands_9 arabic_commands_10 coffee_intent \
	ravdess_speech nemo_pl librispeech_mini,$(SHARED)/$(corpus)/metadata.csv)
PERMISSIVE_SPEAKERS := {"corpus": ["librispeech", "speech_commands", "arabic_sc", "alphanumeric"]}
LAUNCH := $(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no
CLIPS ?= 4000
CONFIG ?= conf/synthetic_phase1.yaml
export TOKENIZERS_PARALLELISM := false
export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart root-model tiny tiny-studies mtl-data real-speech phase1 eval-synthetic eval-real analysis-synthetic test test-slow test-kill test-doors test-transformers lint bench clean

help:  ## Show this list
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-18s %s\n", $$1, $$2}'

setup: $(READY)  ## Make .venv and install the package with the tested versions

$(READY): setup.py pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is %d.%d" % sys.version_info[:2]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

quickstart: $(READY)  ## Synthetic speech -> cache -> training -> Hub folder -> evaluation, about five minutes
	$(BIN)/wavcse synthesize --out $(QUICK)/speech --clips $(CLIPS) --seed 0
	$(BIN)/wavcse cache --manifest $(QUICK)/speech/metadata.csv --upstream . --temporal_pooling mean_std --out $(QUICK)/cache
	$(LAUNCH) train_accelerate.py conf/quickstart.yaml
	$(BIN)/wavcse eval conf/eval_quickstart.yaml
	$(BIN)/python examples/embed_a_file.py $(QUICK)/speech/audio/$$(ls $(QUICK)/speech/audio | head -1) --model $(QUICK)/hub
	@echo 'Real speech, by the model in the root:' && $(BIN)/python -m wavcse.tools.readme --show

# From nothing to the model in the root; every step continues where it was killed, and says how many seconds it took.
root-model: SHELL := /bin/bash
root-model: export TIMEFORMAT := %R s
root-model: $(READY)  ## The model in the root from a Whisper encoder: cache -> Phase 1 -> evaluation -> root and README
	time $(BIN)/python -m wavcse.tools.split $(SHARED)/../pretrain/manifest.csv --out $(ROOT)/speakers.csv \
		--where '$(PERMISSIVE_SPEAKERS)'
	time $(BIN)/wavcse cache --upstream $(UPSTREAM) --temporal_pooling mean_std --out $(ROOT)/cache --manifest $(ROOT_MANIFESTS)
	time $(LAUNCH) train_accelerate.py conf/train_root.yaml --upstream $(UPSTREAM)
	time $(BIN)/wavcse eval conf/eval_root.yaml
	time $(BIN)/wavcse eval conf/eval_root.yaml --model models/wavcse-tiny --name wavcse-tiny --baselines majority
	time $(BIN)/python -m wavcse.tools.training_data conf/train_root.yaml --corpora conf/root_data.yaml --out $(ROOT)/data.json
	time $(BIN)/python -m wavcse.tools.install $(ROOT)/model --name $(ROOT_NAME) --evaluation $(ROOT)/eval \
		--data $(ROOT)/data.json --root $(ROOT_INTO)

# Every step continues where it was killed, so the same command goes on.
tiny: $(READY)  ## wavcse-tiny from nothing into runs/tiny/root: pre-training in two stages -> Phase 1 -> evaluation
	$(BIN)/wavcse synthesize --out $(SYNTHETIC)/speech --twins --seed 0
	$(BIN)/wavcse synthesize --out $(QUICK)/speech --clips $(CLIPS) --seed 0
	OMP_NUM_THREADS=1 $(LAUNCH) pretrain_accelerate.py conf/pretrain_tiny.yaml
	OMP_NUM_THREADS=1 $(LAUNCH) pretrain_accelerate.py conf/pretrain_tiny_lasr.yaml
	$(BIN)/wavcse cache --upstream $(TINY)/lasr/upstream --temporal_pooling mean_std --out $(TINY)/cache \
		--manifest $(TINY_MANIFESTS)
	$(LAUNCH) train_accelerate.py conf/train_tiny.yaml
	$(BIN)/wavcse eval conf/eval_tiny.yaml
	$(BIN)/python examples/random_upstream.py --recipe conf/pretrain_tiny.yaml --out $(TINY)/untrained
	$(BIN)/wavcse eval conf/eval_tiny.yaml --model $(TINY)/untrained --name untrained --baselines best_layer
	$(BIN)/wavcse eval conf/eval_tiny.yaml --model $(TINY)/pretrain/upstream --name best_rq --baselines best_layer
	$(BIN)/wavcse eval conf/eval_tiny.yaml --model $(TINY)/lasr/upstream --name time_mean --baselines best_layer \
		--temporal_pooling mean
	$(BIN)/python -m wavcse.tools.training_data $(TINY_RECIPES) --out $(TINY)/data.json
	$(BIN)/python -m wavcse.tools.install $(TINY)/model --name wavcse-tiny --pretraining $(TINY)/pretrain $(TINY)/lasr \
		--evaluation $(TINY)/eval --data $(TINY)/data.json --root $(TINY_ROOT)

tiny-studies: $(READY)  ## What wavcse-tiny's recipe was chosen by: architectures, label losses, fine-tuning (after make tiny; two hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m wavcse.pretraining.study conf/tiny_architectures.yaml
	OMP_NUM_THREADS=1 $(BIN)/python -m wavcse.pretraining.study conf/tiny_lasr.yaml
	OMP_NUM_THREADS=1 $(BIN)/wavcse finetune conf/finetune_language.yaml

# Clips of ../shared/pretrain with speakers held out, and what Whisper base hears in them: labels for conf/mtl_real.yaml.
mtl-data: $(READY)  ## Transcripts by Whisper base of the LibriSpeech clips in ../shared/pretrain (WHISPER=folder; an hour)
	$(BIN)/python -m wavcse.tools.split $(SHARED)/../pretrain/manifest.csv --out $(MTL)/clips.csv --disjoint --share 0.18 --most 20 \
		--where '{"corpus": "librispeech"}'
	OMP_NUM_THREADS=1 $(BIN)/wavcse transcribe $(MTL)/clips.csv --model $(WHISPER) --language en --out $(MTL)/metadata.csv
	$(BIN)/wavcse trials $(MTL)/metadata.csv --split test --split_column split --out $(MTL)/test_trials.csv

real-speech: $(READY)  ## The quickstart on real recordings in ../shared/data, where they are present
	$(BIN)/python examples/random_upstream.py --out $(REAL)/upstream
	$(BIN)/wavcse cache --upstream $(REAL)/upstream --out $(REAL)/cache --manifest $(foreach corpus,\
		speech_commands_9 arabic_commands_10 nemo_pl ravdess_speech,$(SHARED)/$(corpus)/metadata.csv)
	$(LAUNCH) train_accelerate.py conf/real_speech.yaml
	$(BIN)/wavcse eval conf/eval_real_speech.yaml

eval-synthetic: $(READY)  ## Twins of all corpora -> pre-training -> Phase 1 -> all twelve downstream tasks, under 15 minutes
	$(BIN)/wavcse synthesize --out $(SYNTHETIC)/speech --twins --seed 0
	OMP_NUM_THREADS=1 $(LAUNCH) pretrain_accelerate.py conf/pretrain_synthetic.yaml
	$(BIN)/wavcse synthesize --out $(QUICK)/speech --clips $(CLIPS) --seed 0
	$(BIN)/wavcse cache --manifest $(QUICK)/speech/metadata.csv --upstream $(SYNTHETIC)/pretrain/upstream --out $(SYNTHETIC)/cache
	$(LAUNCH) train_accelerate.py conf/train_synthetic.yaml
	$(BIN)/wavcse eval conf/eval_synthetic.yaml

eval-real: $(READY) $(REAL)/hub/model.safetensors  ## The downstream tasks that ../shared/data supports, on real recordings
	$(BIN)/wavcse eval conf/eval_real.yaml

$(REAL)/hub/model.safetensors:
	$(MAKE) real-speech

# Every step continues where it was killed. The small models learn from the English words; the Spanish ones are new to them.
analysis-synthetic: $(READY)  ## Sentences with times -> four small models of words -> all analyses on seven encoders
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,analysis]'
	$(BIN)/wavcse synthesize --out $(ANALYSIS)/sentences --sentences --clips 300 --seed 0
	for language in en es; do \
		$(BIN)/python -m wavcse.tools.split $(ANALYSIS)/sentences/words.csv --label_column word \
			--where "{\"language\": \"$$language\"}" --out $(ANALYSIS)/words_$$language.csv || exit 1; \
	done
	for kind in audio_word2vec speech2vec siamese lee; do \
		$(BIN)/wavcse words conf/words_synthetic.yaml --manifest $(ANALYSIS)/words_en.csv --kind $$kind \
			--num_epochs 15 --learning_rate 0.003 --tokens_per_word 6 --out $(ANALYSIS)/$$kind || exit 1; \
	done
	$(BIN)/wavcse analyze conf/analysis_synthetic.yaml

phase1: $(READY)  ## Phase 1 of the paper as CONFIG=conf/synthetic_phase1.yaml says: cache, searches, training, report
	$(BIN)/python -m wavcse.search.phase1 $(CONFIG)

# A process per core with one thread each. The tests of a file stay together, as they share what is costly to make, and files
# are dealt in the order of tests/conftest.py: the longest first, so that no process is left alone with one at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

test: $(READY)  ## The default tests: CPU, offline, under eight minutes on two cores
	$(PYTEST) $(TESTS)

test-slow: $(READY)  ## The tests that are left out by default: long trainings, damaged input by the hundred (CI: weekly)
	$(PYTEST) -m 'slow or pretrain or fuzz' $(TESTS)

test-doors: $(READY)  ## Every door with the real library behind it: installs its extras
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,doors,resemblyzer,analysis]' playwright s3fs 'moto[server]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m doors

test-transformers: $(READY)  ## transformers' own common test suites on our classes (fetches its source distribution)
	$(BIN)/python -m pytest -m transformers_common

test-kill: $(READY)  ## Kill every program ten times at random moments, and compare with an undisturbed run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kill

lint: $(READY)  ## ruff, as CI runs it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)  ## Speed, error and memory beside transformers, corpus pass, training: CPU, under 20 minutes a command
	$(BIN)/python benchmarks/bench_upstream.py --threads 1 --rounds 3 --engines --small
	$(BIN)/python benchmarks/bench_upstream.py --threads 2 --rounds 3 --memory
	$(BIN)/python benchmarks/bench_upstream.py --threads 2 --rounds 3 --allocator warm --workloads mixed
	$(BIN)/python benchmarks/bench_whisper.py
	$(BIN)/python benchmarks/bench_corpus.py
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_encoder_step.py

clean:  ## Remove the virtual environment, runs and caches
	rm -rf $(VENV) runs caches build dist *.egg-info .pytest_cache .ruff_cache
