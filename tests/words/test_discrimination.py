"""What the models are for: words by speakers they never heard are told apart where statistics of MFCCs hear the voice."""

import numpy as np
import pandas as pd
import pytest

from wavcse.analysis.analyses.discrimination import closest_labels, is_right, make_triplets
from wavcse.analysis.figures import mean_of
from wavcse.data.manifest import Manifest
from wavcse.data.synthetic import plan_twin, write_plan
from wavcse.data.synthetic.sentences import SENTENCES
from wavcse.eval.baselines.mfcc import MFCCEncoder
from wavcse.words.__main__ import main
from wavcse.words.encoder import SavedWordEncoder

CLIPS = 300


def hard_words(encoders, words):
    """Encoder -> figure of hard triplets among the words of the test speakers, standardised by the training words.

    The positive is said by another speaker, the negative, the nearest other word by its spelling, by the anchor's own.
    """
    manifest = Manifest(words)
    splits, labels, speakers = (manifest.column(name) for name in ("split", "word", "speaker_id"))
    tested, trained = np.flatnonzero(splits == "test"), np.flatnonzero(splits == "train")[::8]
    waves = {row: manifest.clips[row].load(16_000) for row in (*tested, *trained)}
    closest = closest_labels(sorted(set(labels)), "edit")
    triplets = make_triplets(labels[tested].astype(str), speakers[tested].astype(str), "hard", closest, 5, seed=0)
    groups, found = speakers[tested][triplets.anchors], {}
    for name, encoder in encoders.items():
        vectors, known = (np.concatenate([encoder.embed([waves[row]]) for row in rows]) for rows in (tested, trained))
        right = is_right((vectors - known.mean(axis=0)) / known.std(axis=0), triplets)
        found[name] = mean_of(right, groups, "speaker", 0, chance=0.5)
    return found


@pytest.mark.slow
def test_siamese_and_lee_tell_words_of_unseen_speakers_where_statistics_of_mfccs_do_not(tmp_path):
    both = write_plan(plan_twin(SENTENCES, CLIPS, seed=1), tmp_path / "speech").parent / "words.csv"
    words, table = both.with_name("words_en.csv"), pd.read_csv(both, dtype=str)
    table[table["language"] == "en"].to_csv(words, index=False)
    how = ["--manifest", str(words), "--learning_rate", "0.003"]
    encoders = {"mfcc": MFCCEncoder()}
    epochs = {"siamese": ["8", "--tokens_per_word", "6"], "lee": ["40", "--step_epochs", "20"]}  # its loss falls until then
    for kind, own in epochs.items():
        out = tmp_path / kind
        assert main([*how, "--kind", kind, "--out", str(out), "--num_epochs", *own]) == 0
        encoders[kind] = SavedWordEncoder(out / "model")
    found = hard_words(encoders, words)
    for kind in ("siamese", "lee"):
        assert found[kind]["interval"][0] > found["mfcc"]["interval"][1], found
