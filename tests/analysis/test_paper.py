"""What conf/paper/analysis.yaml says of Porjazovski et al. (2024), against their tables; and --dry_run without a Hub."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from wavcse.analysis import __main__ as program
from wavcse.analysis.arguments import ANALYZE, AnalyzeArguments
from wavcse.data.corpora import CORPORA

RECIPE = Path(__file__).parents[2] / "conf/paper/analysis.yaml"
LARGE = ["wav2vec2_large", "hubert_large", "wavlm_large", "wav2vec2_ft", "hubert_ft", "wavlm_ft"]
BASE = ["wav2vec2_base", "hubert_base", "wavlm_base_plus", "whisper_small"]
SMALL = ["audio_word2vec", "speech2vec", "siamese", "lee"]
TABLES = [f"Table {number}" for number in ("I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX")]
TABLE_II = {  # its English columns: gender, emotion, intent
    **{"wav2vec2_base": (3, 1, 7), "hubert_base": (1, 11, 7), "wavlm_base_plus": (5, 5, 9), "whisper_small": (7, 1, 11)},
    **{"wav2vec2_large": (4, 10, 16), "hubert_large": (4, 7, 19), "wavlm_large": (7, 4, 16)},
    **{"wav2vec2_ft": (1, 1, 13), "hubert_ft": (1, 4, 19), "wavlm_ft": (10, 13, 19)},
}


@pytest.fixture(scope="module")
def paper() -> AnalyzeArguments:
    return ANALYZE.parse([str(RECIPE), "--dry_run"])


@pytest.fixture(autouse=True)
def unreachable(monkeypatch):
    """No Hub, and how often it is tried."""
    tried = []

    def refuse(*arguments, **named):
        tried.append(arguments)
        raise OSError("no network")

    monkeypatch.setattr(program.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(program, "urlopen", refuse)
    program._hub_answers.cache_clear()
    yield tried
    program._hub_answers.cache_clear()


def test_every_table_and_figure_is_there(paper):
    assert list(paper.table_settings()) == TABLES + [f"Fig. {number}" for number in range(1, 12)]


def test_layers_are_those_that_the_authors_looked_at_and_table_ii_has_its_choices(paper):
    encoders, layers = paper.encoder_settings(), paper.table_settings()["Table II"].layers
    assert all(encoders[name].layers == list(range(1, 12, 2)) for name in BASE)
    assert all(encoders[name].layers == list(range(1, 23, 3)) for name in LARGE)
    for place, task in enumerate(("gender_en", "emotion_en", "intent_en")):
        assert layers[task] == {name: own[place] for name, own in TABLE_II.items()}
    # in French those of the English column, where the paper has no checkpoint of that language
    for task in ("gender", "emotion"):
        starred = ["hubert_base", "wavlm_base_plus", "whisper_small", "hubert_large", "wavlm_large"]
        assert layers[f"{task}_fr"] == {name: layers[f"{task}_en"][name] for name in starred}


@pytest.mark.parametrize(
    ("table", "section", "shown", "missing"),
    [
        ("Table I", "layers", {"gender_en": ["mfcc", *[f"{one}_en" for one in SMALL], *BASE, *LARGE]}, "Lahjoita Puhetta"),
        ("Table IV", "sequence", {"intent_en": ["mfcc", *[f"{one}_en" for one in SMALL], *BASE, *LARGE]}, "HealthCall30"),
        ("Table V", "discrimination", {f"word_{own}": [f"{one}_{own}" for one in SMALL] for own in ("en", "fr")}, "Lahjoita"),
        ("Table VII", "discrimination", {"emotion_en": BASE + LARGE}, "FESC"),
        ("Table VIII", "dimensions", {f"{one}_en": BASE + LARGE for one in ("gender", "emotion", "intent")}, ""),
        ("Fig. 1", "maps", {"word_en": [f"{one}_en" for one in SMALL]}, "times of words"),
        ("Fig. 2", "maps", {}, "Lahjoita Puhetta"),
        ("Fig. 4", "dimensions", {"intent_en": ["wav2vec2_base"]}, ""),
    ],
)
def test_a_table_has_its_section_tasks_encoders_and_what_is_missing(paper, table, section, shown, missing):
    own = paper.table_settings()[table]
    assert own.section == section
    assert {task: sorted(own.encoders[task]) for task in shown} == {task: sorted(named) for task, named in shown.items()}
    assert set(shown) <= set(own.tasks) == set(own.encoders)
    assert missing in own.missing
    assert bool(missing) == bool(own.missing)


def test_tasks_are_the_papers_corpora_and_their_manifests_come_from_our_readers(paper):
    requests = paper.requests()
    columns = {"gender_en": "split_sv", "gender_fr": "split", "emotion_en": "split_er", "emotion_fr": "split_er"}
    columns["intent_en"] = "split_ic"
    for name, column in columns.items():
        task = requests[name].task
        assert task.split_columns == (column,)
        found = re.match(r"wavcse corpora (\w+)(?: --protocol ([\w-]+))? --root \S+ --out (\S+\.csv)", task.note)
        corpus = CORPORA[found[1]]
        assert corpus.protocol(found[2])
        assert requests[name].manifests == [found[3]]
        assert corpus.facts.title in task.title
    assert paper.analyses["sequence"]["learning_rate"] == 1e-4


def test_the_dry_run_says_all_of_it_at_once_and_tries_the_hub_once(unreachable, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # with no manifest and no model of words
    monkeypatch.setattr(program, "_is_here", lambda model: model == "microsoft/wavlm-large")
    begun = time.monotonic()
    assert program.main([str(RECIPE), "--dry_run"]) == 0
    assert time.monotonic() - begun < 20  # the library alone would wait that long for each checkpoint
    assert len(unreachable) == 1
    shown = capsys.readouterr().out
    base = "facebook/wav2vec2-base, layers 1, 3, 5, 7, 9, 11"
    assert f"wav2vec2_base: {base}; MISSING: not in the cache, and the Hub cannot be reached\n" in shown
    assert "wavlm_large: microsoft/wavlm-large, layers 1, 4, 7, 10, 13, 16, 19, 22\n" in shown
    assert "siamese_en: runs/paper/words_en/siamese/model; MISSING: not on this machine; made by: wavcse words" in shown
    assert "MISSING: data/slurp.csv\n    wavcse corpora slurp" in shown
    (table,) = re.findall(r"^Table III: .*?(?=^Table IV)", shown, re.M | re.S)
    assert "emotion_fr: Emotion (fr), CaFE; data/cafe.csv, label emotion, split by split_er" in table
    assert "facebook/hubert-base-ls960, layer 11; " in table
    assert "MISSING: FESC" in table


def test_an_optional_encoder_is_left_out_without_a_wait(unreachable, monkeypatch):
    monkeypatch.setattr(program, "_is_here", lambda model: False)
    encoders = {"mfcc": {}, **{name: {"model": f"some/{name}", "optional": True} for name in ("one", "two")}}
    line = ["--encoders", json.dumps(encoders), "--tasks", "emotion", "--manifest", "m.csv", "--out", "o"]
    built, left_out = program.built_encoders(ANALYZE.parse(line), "cpu")
    assert [own.name for own in built] == ["mfcc"]
    why = "is not in the cache, and the Hub cannot be reached."
    assert left_out == [f"`{name}` is left out: some/{name} {why}" for name in ("one", "two")]
    assert len(unreachable) == 1


def test_what_is_in_a_folder_is_here_and_a_configuration_alone_is_not(upstream_folder, tmp_path, unreachable):
    assert program._absence(str(upstream_folder)) == ""
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text('{"model_type": "wav2vec2"}')
    assert program._absence(str(tmp_path / "half")) == "not on this machine"
    assert not unreachable


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"layers": {"emotion": {"mfc": 1}}}, "tables.Table I: an encoder is 'mfc'"),
        ({"encoders": {"emotions": ["mfcc"]}}, "tables.Table I: a task is 'emotions'"),
        ({"paper_layers": "Table 2"}, "tables.Table I: paper_layers is 'Table 2'"),
        ({"layers": {"emotion": {"w": 2}}}, "tables.Table I: layers.emotion: w does not keep layer 2"),
    ],
)
def test_a_table_that_names_what_is_not_there_is_refused(table, message, capsys):
    encoders = json.dumps({"mfcc": {}, "w": {"model": "some/w", "layers": [1, 3]}})
    line = ["--encoders", encoders, "--tasks", "emotion", "--manifest", __file__, "--out", "o", "--dry_run"]
    assert ANALYZE.refusal([*line, "--tables", json.dumps({"Table I": table})]) == 2
    assert message in capsys.readouterr().err
