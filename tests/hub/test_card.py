"""The card of a run says what the result files say, in a form that the Hub accepts; nothing in it is typed by hand."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, constants, parse_eval_result_entries

import wavcse
from wavcse.data import hub_datasets
from wavcse.data.hub_datasets import DataSet
from wavcse.eval.metrics import METRICS
from wavcse.hub import card as card_cli
from wavcse.hub.build import build_repository
from wavcse.hub.card import base_model_of, languages_of, metadata_of
from wavcse.hub.source import read_source
from wavcse.hub_repository_wavcse import CITATION, CODE_FILES, HANDLER, SECTIONS
from wavcse.tests.helpers.card_rules import card_errors
from wavcse.tests.helpers.hub_server import HubServer
from wavcse.tests.helpers.published_run import REPO_ID, make_run

ROOT = Path(wavcse.__file__).parent


@pytest.fixture(scope="module")
def run(tiny_multi_task_model, tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run"), tiny_multi_task_model(), mfcc=0.5)


@pytest.fixture(scope="module")
def own(run) -> dict[str, dict]:
    """Row of the table -> the record of the model."""
    records = [json.loads(path.read_text()) for path in (run / "results").glob("*__wavcse.json")]
    return {record["task"]["name"]: record for record in records}


@pytest.fixture(scope="module")
def built(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    assert build_repository(read_source(run), folder, REPO_ID)
    return folder


@pytest.fixture(scope="module")
def card(built) -> ModelCard:
    return ModelCard.load(built / "README.md")


def section(card: ModelCard, title: str) -> str:
    return card.text.split(f"\n## {title}\n")[1].split("\n## ")[0]


@pytest.fixture
def hub(monkeypatch):
    """A loopback Hub that this process' client talks to."""
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield server


# ---- the header ----


def test_header(card, own):
    data = card.data
    assert (data.library_name, data.pipeline_tag, data.license) == ("transformers", "feature-extraction", "apache-2.0")
    assert data.base_model == "microsoft/wavlm-base"
    assert data.language == ["en", "it"]
    assert data.datasets == sorted({record["task"]["corpus"] for record in own.values()})
    assert set(data.metrics) == {record["task"]["metrics"][0] for record in own.values()}
    assert {"speech", "wavcse", "wavlm"} <= set(data.tags)


def test_the_hub_accepts_the_header(card, hub):
    card.validate()
    assert hub.requests[-1] == "POST /api/validate-yaml"
    card.data.license = "none of your business"
    with pytest.raises(ValueError, match="license"):
        card.validate()
    card.data.license = "apache-2.0"


@pytest.mark.parametrize(
    ("field", "value"),
    [("language", ["English"]), ("base_model", "runs/quickstart/upstream"), ("model-index", [{"name": "", "results": []}])],
)
def test_the_rules_of_the_loopback_hub_refuse(card, field, value):
    header = {**card.data.to_dict(), field: value}
    assert card_errors(f"---\n{yaml.safe_dump(card.data.to_dict())}---\n") == []
    assert any(field in error for error in card_errors(f"---\n{yaml.safe_dump(header)}---\n"))


def test_model_index_holds_every_metric_of_every_task(card, own):
    found = {(result.task_name, result.metric_type): result for result in card.data.eval_results}
    expected = {
        (record["task"]["title"], metric): record["metrics"][metric]["value"]
        for record in own.values()
        for metric in record["task"]["metrics"]
    }
    assert {key: result.metric_value for key, result in found.items()} == expected
    for record in own.values():
        result = found[record["task"]["title"], record["task"]["metrics"][0]]
        assert (result.dataset_type, result.dataset_split) == (record["task"]["corpus"], "test")
        assert result.metric_name == METRICS[result.metric_type].title
    assert {result.task_type for result in found.values()} == {
        "audio-classification",
        "speaker-verification",
        "audio-regression",
    }


def test_eval_results_and_model_index_are_one(built, card, own):
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (built / ".eval_results").iterdir()}
    assert set(files) == set(own)
    index = {(result.task_name, result.metric_type): result for result in card.data.eval_results}
    for name, content in files.items():
        (entry,) = parse_eval_result_entries(content)
        task = own[name]["task"]
        result = index[task["title"], task["metrics"][0]]
        assert (entry.value, entry.dataset_id, entry.task_id) == (result.metric_value, result.dataset_type, name)
        assert entry.date == own[name]["date"]
        low, high = own[name]["metrics"][task["metrics"][0]]["interval"]
        assert f"{low:.4g} to {high:.4g}" in entry.notes


def test_what_is_stated_wins(run):
    source = read_source(run)
    metadata = metadata_of(source, REPO_ID, license="cc-by-4.0", language=["de"], base_model=None)
    assert (metadata["license"], metadata["language"], metadata["base_model"]) == ("cc-by-4.0", ["de"], "microsoft/wavlm-base")


@pytest.mark.parametrize("upstream", [None, "/models/wavlm", "runs/quickstart/upstream", "here/upstream"])
def test_a_folder_is_no_base_model(upstream, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "upstream").mkdir(parents=True)
    assert base_model_of({"upstream": upstream}) is None


def test_languages_are_codes_of_manifests_that_are_there(tmp_path):
    (tmp_path / "a.csv").write_text("file_name,language\na.wav,el\nb.wav,English\n")
    (tmp_path / "b.csv").write_text("file_name\na.wav\n")
    manifests = [str(tmp_path / name) for name in ("a.csv", "b.csv", "gone.csv")]
    assert languages_of({"tasks": {"keyword": {"manifest": manifests}}}) == ["el"]


def test_languages_of_data_sets_are_those_of_their_copies(tmp_path, monkeypatch):
    monkeypatch.setenv("WAVCSE_DATASETS", str(tmp_path / "copies"))
    sources = ["hf://datasets/org/known?split=train", f"hf://datasets/org/pinned@{'a' * 40}", "hf://datasets/org/unknown"]
    for source, language in zip(sources, ("fa", "hi")):  # as they are copied, of which nothing is left of the third
        wanted = DataSet.parse(source)
        folder = hub_datasets._folder_of(wanted, wanted.revision or "b" * 40)
        folder.mkdir(parents=True)
        (folder / "metadata.csv").write_text(f"file_name,language\na.wav,{language}\n")
    hub_datasets._record_of(DataSet.parse(sources[0])).write_text("b" * 40)
    assert languages_of({"tasks": {"keyword": {"manifest": sources[:2]}, "emotion": {"manifest": sources[2]}}}) == ["fa", "hi"]


# ---- the text ----


def test_sections_in_order(card):
    assert re.findall(r"^## (.+)$", card.text, re.MULTILINE) == [title for title in SECTIONS if title != "Exported files"]


def test_the_table_is_the_evaluations_own(card, run, own):
    text = section(card, "Evaluation")
    for record in own.values():
        assert f"| {record['task']['title']} |" in text
    accuracy = own["keyword"]["metrics"]["accuracy"]
    assert f"{100 * accuracy['value']:.1f}" in text
    assert "mfcc" in text
    assert read_source(run).sha256 in text


def test_training_details(card):
    text = section(card, "Training details")
    assert "| keyword | `corpus/metadata.csv` (official) | 3 | 300, 40, 80 | 50.0, 46.2 |" in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == {
        "upstream": "microsoft/wavlm-base",
        "learning_rate": 0.0025,
    }
    assert "epoch 7 of 9" in text
    assert "torch 2.13.0" in text


def test_limits_repeat_remarks_and_terms(card, own):
    text = section(card, "Bias, risks and limits")
    assert "A planted remark." in text
    assert own["gender"]["task"]["benchmark"]["licence"] in text  # measured on the paper's own corpus
    assert own["keyword"]["task"]["benchmark"]["licence"] not in text  # on a stand-in


def test_the_usage_shows_the_heads_where_there_are_some(card, tiny_model, tmp_path):
    assert 'pipeline("audio-classification", model=' in section(card, "Usage")
    tiny_model().save_pretrained(tmp_path)
    assert "audio-classification" not in ModelCard.load(tmp_path / "README.md").text


def test_every_file_that_runs_is_listed_with_its_hash(built, card):
    listed = dict(re.findall(r"^\| `(\S+)` \| `([0-9a-f]{64})` \|$", section(card, "Python files that run"), re.MULTILINE))
    assert listed == {name: hashlib.sha256((ROOT / name).read_bytes()).hexdigest() for name in (*CODE_FILES, HANDLER)}
    assert set(listed) == {path.name for path in built.glob("*.py")}


def test_no_path_of_this_machine(built, run):
    for path in (built / "README.md", *(built / ".eval_results").iterdir()):
        text = path.read_text()
        assert str(run) not in text
        assert "/somewhere" not in text


def test_citation_is_that_of_the_project():
    reference = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"][0]
    assert f"title = {{{reference['title']}}}" in CITATION
    assert f"year = {{{reference['year']}}}" in CITATION
    assert reference["conference"]["name"] in CITATION


def test_same_run_same_bytes(built, run, tmp_path):
    build_repository(read_source(run), tmp_path, REPO_ID)
    for path in (built / "README.md", *(built / ".eval_results").iterdir()):
        assert (tmp_path / path.relative_to(built)).read_bytes() == path.read_bytes()


# ---- which card, which results ----


def test_a_card_of_ones_own_is_kept_and_a_generated_one_renewed(tiny_model, tmp_path):
    model, mine = tiny_model(), "# My card\n"
    model.save_pretrained(tmp_path / "run" / "hub")
    readme = tmp_path / "run" / "hub" / "README.md"
    readme.write_text(readme.read_text().replace("apache-2.0", "stale"))
    model.save_pretrained(tmp_path / "run" / "hub")
    assert "stale" not in readme.read_text()
    readme.write_text(mine)
    (tmp_path / "built").mkdir()
    assert not build_repository(read_source(tmp_path / "run"), tmp_path / "built", REPO_ID)
    assert (tmp_path / "built" / "README.md").read_text() == mine


def test_an_evaluation_beside_the_weights_is_published_without_what_it_knows_of_voices(run, tmp_path):
    shutil.copytree(run / "hub", tmp_path / "model")
    shutil.copytree(run / "results", tmp_path / "model" / "results")
    for name in ("embeddings/wavcse.0/a.safetensors", "predictions/other__wavcse.parquet", "mine/predictions/a.txt"):
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(b"planted")
    (tmp_path / "built").mkdir()
    build_repository(read_source(tmp_path / "model"), tmp_path / "built", REPO_ID)
    planted = [path.relative_to(tmp_path / "built").as_posix() for path in (tmp_path / "built").rglob("*") if path.is_file()]
    assert "mine/predictions/a.txt" in planted
    assert [name for name in planted if name.startswith(("embeddings/", "predictions/"))] == []


def test_results_of_other_weights_are_refused(run, tiny_model, tmp_path, capsys):
    tiny_model().save_pretrained(tmp_path / "hub")
    with pytest.raises(ValueError, match="none of the .* results is of these weights"):
        read_source(tmp_path, results=run)
    assert read_source(tmp_path).records == []  # without an evaluation there is nothing to refuse
    capsys.readouterr()
    assert card_cli.main([str(tmp_path), "--results", str(run)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "holds no model"), ("[]", "not the configuration"), ('{"model_type": "wavlm"}', "not of a wavCSE model")],
)
def test_what_is_no_model_is_refused(content, message, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path)


def test_weights_other_than_safetensors_are_refused(tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="only safetensors"):
        read_source(tmp_path)


@pytest.mark.parametrize(("content", "message"), [("{", "not the result"), ("{}", "lacks tasks, best_epoch")])
def test_a_broken_training_result_is_refused(content, message, tiny_model, tmp_path):
    tiny_model().save_pretrained(tmp_path / "hub")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "phase1.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_source(tmp_path)
    assert read_source(tmp_path / "hub").training is None


def test_card_command_prints_the_card(run, card, capsys):
    assert card_cli.main([str(run), "--repo_id", REPO_ID]) == 0
    assert capsys.readouterr().out.strip() == (str(card)).strip()
