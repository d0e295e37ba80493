"""Whisper's contexts, probed: which clips are taken, figures of a tiny encoder, and a page made from the committed results."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from wavcse.benchmarks import probe_contexts
from wavcse.benchmarks.probe_contexts import BEGIN, END, PAGE, RESULT, load_tasks, main, markdown_of, with_tables

PARTS = {"train": [0, 1, 2, 3, 4], "validation": [5, 6], "test": [7]}  # of the words, by speaker
TAKES = ("train", "train", "validation", "test")  # of the speakers


@pytest.fixture
def words(toy_corpus, tmp_path, monkeypatch):
    """A folder with one corpus: 8 speakers x 3 words x 4 takes, every clip in a part of both tasks."""
    table = pd.read_csv(toy_corpus)
    speakers, takes = table.index % 8, table.index // 24
    table["split_ks"] = [next(part for part, own in PARTS.items() if speaker in own) for speaker in speakers]
    table["split_sid"] = [TAKES[take] for take in takes]
    table["file_name"] = [f"audio/{name}" for name in table["file_name"]]
    (tmp_path / "data" / "toy").mkdir(parents=True)
    (tmp_path / "data" / "toy" / "audio").symlink_to(toy_corpus.parent)
    table.to_csv(tmp_path / "data" / "toy" / "metadata.csv", index=False)
    monkeypatch.setattr(probe_contexts, "CORPORA", {"toy": "xx"})
    return tmp_path / "data"


def counts(data) -> dict[str, int]:
    return {part: len(data.table.rows(part)) for part in ("train", "validation", "test")}


def test_clips_are_in_a_part_of_both_tasks_at_most_so_many_of_each_combination(words):
    whole, some = load_tasks(words, 100), load_tasks(words, 4)
    assert list(whole) == ["words (xx)", "speakers (xx)"]
    # (train, train) 30, (validation, train) 12, (train, validation) 15, (validation, validation) 6
    assert counts(whole["words (xx)"]) == {"train": 45, "validation": 18, "test": 0}
    assert counts(whole["speakers (xx)"]) == {"train": 42, "validation": 21, "test": 0}
    assert counts(some["words (xx)"]) == counts(some["speakers (xx)"]) == {"train": 8, "validation": 8, "test": 0}
    places = [[clip.place for clip in data.table.clips] for data in some.values()]
    assert places[0] == places[1]
    assert len(set(some["words (xx)"].table.labels)) == 3  # spread over the manifest, not its beginning


@pytest.mark.slow
@pytest.mark.usefixtures("quick_probes")
def test_both_contexts_are_probed_layer_by_layer(words, tmp_path):
    torch.manual_seed(0)
    shape = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_layers": 1}
    shape |= {"decoder_attention_heads": 2, "decoder_ffn_dim": 64, "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1}
    config = WhisperConfig(**shape, eos_token_id=2, decoder_start_token_id=1, max_source_positions=50)
    WhisperForConditionalGeneration(config).save_pretrained(tmp_path / "tiny")
    WhisperFeatureExtractor(chunk_length=1).save_pretrained(tmp_path / "tiny")
    page, out = tmp_path / "page.md", tmp_path / "found.json"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    main(
        [
            *("--models", str(tmp_path / "tiny"), "--data", str(words), "--most", "100", "--seeds", "2"),
            *("--store", str(tmp_path / "store"), "--out", str(out), "--page", str(page)),
        ]
    )
    report = json.loads(out.read_text())
    (model,) = report["models"]
    assert (model["name"], model["clips"]) == ("tiny", 63)
    for task in model["tasks"]:
        for context in ("clip", "window"):
            by_layer = task[context]["by_layer"]
            assert (len(by_layer), task[context]["best_layer"]) == (3, int(np.argmax(by_layer)))
            assert max(by_layer) > (0.5 if task["task"].startswith("words") else 1 / 7)  # random weights tell pitches apart
        low, high = task["difference"]
        assert low <= task["clip"]["accuracy"] - task["window"]["accuracy"] <= high
    assert page.read_text() == f"before\n{BEGIN}\n\n{markdown_of(report)}\n\n{END}\nafter\n"


def test_the_page_and_the_table_are_made_from_the_results():
    tables = markdown_of(json.loads(RESULT.read_text(encoding="utf-8")))
    page = PAGE.read_text(encoding="utf-8")
    assert with_tables(page, tables) == page
    assert RESULT.with_suffix(".md").read_text(encoding="utf-8") == f"# Whisper in its two contexts\n\n{tables}\n"
    with pytest.raises(ValueError, match=f"needs one line '{BEGIN}'"):
        with_tables("a page without marks", tables)
