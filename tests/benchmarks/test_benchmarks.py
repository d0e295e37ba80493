"""The benchmarks' own arithmetic, and both scripts end to end on a tiny model: reports are complete, errors are small."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import WavLMConfig, WhisperFeatureExtractor

from wavcse.benchmarks import bench_corpus, bench_profile, bench_upstream, engines, memory, million_hours
from wavcse.benchmarks.bench_whisper import engine_words
from wavcse.benchmarks.ctranslate import engine_ways
from wavcse.benchmarks.floors import Floor, cells, page
from wavcse.benchmarks.measure import Errors, PairedRatio, device_class
from wavcse.benchmarks.memory import rival_memory_mb
from wavcse.benchmarks.report import markdown_of, table
from wavcse.benchmarks.rerun import newest_rates, over_rerun, rates_of
from wavcse.benchmarks.rivals import all_variants, make_bench
from wavcse.benchmarks.search_report import markdown_of as search_markdown
from wavcse.benchmarks.workloads import WORKLOADS, Workload, count_flop, waveforms
from wavcse.configuration_wavcse import WAVLM_LARGE
from wavcse.tests.helpers.processes import run_python

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
LARGE = WavLMConfig(**{name: value for name, value in WAVLM_LARGE.items() if name != "model_type"})


def run_script(name: str, *arguments: str | Path) -> str:
    """Standard output of a benchmark; fails with its error output."""
    done = subprocess.run([sys.executable, BENCHMARKS / name, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("seconds", "blocks", "packed", "gflop_per_audio_s"),
    [(1, 24, False, 36.2), (1, 17, False, 27.4), (1, 17, True, 26.1), (8, 17, True, 27.3), (30, 24, False, 43.4)],
)
def test_arithmetic_of_wavlm_large(seconds, blocks, packed, gflop_per_audio_s):
    flop = count_flop(LARGE, 16_000 * seconds, blocks, packed)
    assert sum(flop.values()) / seconds / 1e9 == pytest.approx(gflop_per_audio_s, rel=0.03)


def test_every_operator_of_a_profile_is_of_one_part():
    found = {
        **{"aten::addmm": "products", "mkldnn::_linear_pointwise": "products", "aten::mm": "products"},
        **{"aten::bmm": "attention", "aten::_scaled_dot_product_flash_attention_for_cpu": "attention"},
        **{"aten::mkldnn_convolution": "convolutions", "aten::native_layer_norm": "norms", "aten::gelu": "GELU"},
        **{"aten::_fft_r2c": "Fourier transforms", "aten::copy_": "moving numbers", "aten::add": "other operators"},
    }
    assert {operator: bench_profile.part_of(operator) for operator in found} == found


@pytest.mark.slow
def test_a_profile_adds_up(tmp_path):
    run_script("bench_profile.py", "--quick", "--rounds", "2", "--out", tmp_path / "profile.json")
    for model in json.loads((tmp_path / "profile.json").read_text())["models"]:
        for call in model["calls"]:
            assert call["parts_ms"]["products"] > 0
            assert sum(call["parts_ms"].values()) >= call["ms"] * 0.999  # the profiler itself takes time, too
    assert "products" in (tmp_path / "profile.md").read_text()


@pytest.mark.slow
def test_a_training_step_is_measured_in_all_its_ways(tmp_path):
    run_script("bench_encoder_step.py", "--quick", "--rounds", "2", "--out", tmp_path / "step.json")
    rows = json.loads((tmp_path / "step.json").read_text())["rows"]
    assert [row["lengths"] for row in rows] == 5 * [1, 8]
    assert all(len(own) == 2 for row in rows for own in row["seconds"].values())
    assert "wav2vec2, base shape" in (tmp_path / "step.md").read_text()


@pytest.mark.slow
def test_the_whisper_benchmark_finds_exact_layers_at_every_length(tmp_path):
    run_script("bench_whisper.py", "--quick", "--rounds", "1", "--out", tmp_path / "whisper.json")
    (model,) = json.loads((tmp_path / "whisper.json").read_text())["models"]
    exact = [row for row in model["errors"] if row["precision"] == "float32"]
    assert {(row["context"], round(30 * row["seconds"], 2)) for row in exact} >= {
        ("clip", 70.0),
        ("window", 70.0),
        ("clip", 0.75),
    }
    assert max(max(row["relative"], row["relative_in_a_batch"]) for row in exact) < 1e-5
    assert min(row["min_cosine"] for row in model["errors"]) > 0.99
    ways = {row["way"] for row in model["speeds"]}
    assert {"transformers, 30 s", "clip, float32", "clip, int8", "window, float32"} == ways - {"clip, bfloat16"}
    assert all(row["audio_s_per_cpu_s"] > 0 for row in model["speeds"])
    assert "| clip, float32 " in (tmp_path / "whisper.md").read_text()


def test_a_whisper_engine_that_cannot_run_is_left_out_with_a_word(capsys):
    assert engine_ways(None, WhisperFeatureExtractor()) == {}
    assert capsys.readouterr().out == "CTranslate2 is left out: it needs a saved checkpoint.\n"
    rows = [{"way": "CTranslate2 int8, 30 s", "relative": 0.1, "min_cosine": 0.99}]
    assert "int8, 30 s: 0.99000" in engine_words({"engine": rows, "engine_version": "CTranslate2 4"})


def test_paired_ratio_is_the_median_over_rounds():
    ratio = PairedRatio.of([2.0, 4.0, 9.0], [1.0, 1.0, 3.0])
    assert ratio == PairedRatio(3.0, pytest.approx(2 / 3))
    assert PairedRatio.of([2.0], [1.0]).spread is None


def test_errors_are_found_in_the_worst_layer():
    reference = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    errors = Errors.of(reference + torch.tensor([[[0.0, 0.5], [0.0, 0.0]]]), reference)
    assert errors.max_abs == pytest.approx(0.5)
    assert errors.relative == pytest.approx(0.1)
    assert errors.min_cosine == errors.min_cosine_per_layer[0] < errors.min_cosine_per_layer[1] == 1.0


def test_peak_memory_sees_a_tensor_that_is_gone_again():
    # In a process of its own: what other tests have freed stays with the allocator, and would be used again.
    code = """
import torch
from wavcse.benchmarks.measure import PeakMemory
with PeakMemory(torch.device("cpu")) as before:
    pass
with PeakMemory(torch.device("cpu")) as memory:
    for _ in range(20):
        torch.ones(25_000_000)
print(memory.peak_mb - before.peak_mb)
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert 50 < float(done.stdout) < 200


def test_the_rivals_memory_grows_with_the_square_of_the_length():
    def estimate(seconds: float) -> float:
        return rival_memory_mb(LARGE, Workload("", "", (seconds,)), keeps_states=True, batch_size=1)

    assert estimate(60) == pytest.approx(3_300, rel=0.1)  # measured with transformers 5.23
    assert estimate(600) > 80 * estimate(60)


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_all_variants_compute_the_same_and_take_clips_in_any_order():
    bench = make_bench(True, torch.device("cpu"))
    clips = waveforms(WORKLOADS[0].scaled(0.05))
    reference, *others = [variant.run(clips, variant.batch_sizes[0]) for variant in all_variants(bench)]
    for variant, output in zip(all_variants(bench)[1:], others):
        assert variant.accepts(Errors.of(output, reference)), variant.name
        assert not variant.accepts(Errors.of(output.flip(0), reference)), variant.name


def test_a_variant_outside_its_tolerance_gets_no_speed():
    row = {"name": "int8", "title": "ours", "within_tolerance": False, "max_abs": 1.0, "relative": 1.0, "min_cosine": 0.1}
    workload = {"title": "clips", "name": "c", "clip_seconds": [1.0], "audio_s": 1.0, "padded_s": 1.0, "rounds": 2}
    run = {"threads": 1, "allocator": "default", "gflop_per_s": {"float32": 100.0}, "memory": []}
    run["workloads"] = [workload | {"gflop_per_s": {"float32": 100.0}, "variants": [row]}]
    report = {"date": "2026-01-31", "device": "cpu", "machine": {"processor": "p"}, "runs": [run]}
    assert "outside its tolerance" in markdown_of(report)


def result_of(figures: dict[str, dict], small: dict | None = None) -> dict:
    """A run with one row per workload and variant."""
    workloads = [
        {"name": name, "variants": [{"name": variant, **row} for variant, row in rows.items()]}
        for name, rows in figures.items()
    ]
    return {"threads": 1, "allocator": "default", "workloads": workloads, "small": small}


def test_a_floor_is_met_where_the_slowest_workload_meets_it():
    floor = Floor("share", 0.85, "share_of_limit", workloads=("mixed", "gsc"), unit="%")
    figures = {"mixed": {"float32": {"share_of_limit": 0.9}}, "gsc": {"float32": {"share_of_limit": 0.85}}}
    assert cells(result_of(figures), floor) == ["share", "at least 85%", "85%", "gsc", "met"]
    figures["gsc"]["float32"]["share_of_limit"] = 0.84
    assert cells(result_of(figures), floor)[2:] == ["84%", "gsc", "missed"]
    figures["30s"] = {"float32": {"share_of_limit": 0.1}}  # none of its workloads
    assert cells(result_of(figures), floor)[2:] == ["84%", "gsc", "missed"]
    assert cells(result_of({}), floor)[2] == "not measured"


def test_ratios_and_ceilings():
    ratio = Floor("ratio", 1.2, "over_engine", "int8")
    figures = {"mixed": {"int8": {"over_engine": {"ratio": 1.25, "spread": 0.1}}}}
    assert cells(result_of(figures), ratio)[2:] == ["1.25x", "", "met"]
    ceiling = Floor("encode", 8.0, "encode_ms", "small", (), "ms", most=True)
    assert cells(result_of({}, {"encode_ms": 8.1}), ceiling) == ["encode", "at most 8.0 ms", "8.1 ms", "", "missed"]
    assert cells(result_of({}, {"encode_ms": 8.0}), ceiling)[4] == "met"
    assert cells(result_of({}, {"share_of_limit": 0.5}), ceiling)[2] == "not measured"  # a result from before this floor


def test_the_page_of_floors_is_made_from_the_results(tmp_path):
    for day, instructions, share in (("2026-01-31", "AVX2", 0.1), ("2026-02-01", "AVX2", 0.95), ("2026-01-01", "AVX512", 0.2)):
        run = result_of({"30s": {"float32": {"share_of_limit": share}}})
        report = {"date": day, "machine": {"processor": "p", "instructions": instructions}, "runs": [run]}
        (tmp_path / f"{day}-cpu-{instructions.lower()}.json").write_text(json.dumps(report))
    text = page(tmp_path)
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## p, AVX2", "## p, AVX512"]
    assert "95%" in text
    assert "20%" in text
    assert "10%" not in text
    committed = BENCHMARKS / "results" / "floors.md"
    assert committed.read_text(encoding="utf-8") == page(committed.parent)


def test_the_page_of_a_million_hours_is_made_from_the_results(tmp_path):
    for name, machine in (("cpu-avx2", {"processor": "p", "instructions": "AVX2"}), ("cuda", {"processor": "p", "gpu": "G"})):
        run = result_of({"voxceleb": {"float32": {"audio_s_per_s": 4.0 if name != "cuda" else 1000.0}}})
        report = {"date": "2026-01-01", "device": name[:4].rstrip("-"), "machine": machine, "runs": [run]}
        (tmp_path / f"2026-01-01-{name}.json").write_text(json.dumps(report))
    found = {rate.machine: (rate.unit, rate.unit_hours) for rate in million_hours.rates(tmp_path)}
    assert found == {"p, AVX2": ("core", 250_000.0), "G": ("GPU", 1_000.0)}
    lines = million_hours.page(tmp_path, price_per_unit_hour=0.5).splitlines()
    costs = [line.split("|")[-2].strip() for line in lines if "float32" in line]
    assert costs == ["125,000", "500"]
    assert "| 2000 " in lines[-3]
    assert lines[-3].split("|")[-2].strip() == "3.60"  # 450 million clips x 2000 numbers x 4 bytes
    committed = BENCHMARKS.parent / "docs" / "million_hours.md"
    assert committed.read_text(encoding="utf-8") == million_hours.page()


def test_another_engine_is_left_out_where_it_is_not_installed(monkeypatch, capsys):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    assert engines.engine_variants(make_bench(True, torch.device("cpu"))) == []
    assert "ONNX Runtime is left out: onnxruntime, onnx not installed" in capsys.readouterr().out


def test_another_engine_computes_the_same():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    bench = make_bench(True, torch.device("cpu"))
    clips = waveforms(WORKLOADS[0].scaled(0.1))
    reference = all_variants(bench)[0].run(clips, 1)
    for variant in engines.engine_variants(bench):
        assert variant.accepts(Errors.of(variant.run(clips, 1), reference)), variant.name


def test_ratios_over_another_engine_are_at_the_same_precision():
    names = {
        "ordinary": ("float32", None, 8.0),
        "onnx": ("float32", "ONNX Runtime", 3.0),
        "onnx_int8": ("int8", "ONNX Runtime", 2.0),
    }
    names |= {"float32": ("float32", None, 2.0), "int8": ("int8", None, 1.0)}
    rows = [
        {
            "name": name,
            "precision": precision,
            "engine": engine,
            "is_rival": name not in ("float32", "int8"),
            "seconds": [s, s],
        }
        for name, (precision, engine, s) in names.items()
    ]
    bench_upstream.add_ratios(rows)
    by_name = {row["name"]: row for row in rows}
    assert by_name["float32"]["over_engine"]["ratio"] == 1.5
    assert by_name["int8"]["over_engine"]["ratio"] == by_name["int8"]["over_float32"]["ratio"] == 2.0
    assert by_name["float32"]["over_best_rival"]["ratio"] == 4.0  # another engine is no use of transformers
    assert "over_engine" not in by_name["onnx"]


def test_results_are_kept_by_class_of_processors():
    assert device_class("cuda") == "cuda"
    assert device_class("cpu") == f"cpu-{torch.backends.cpu.get_cpu_capability().lower()}"


def workload_row(name: str, rate: float, is_rival: bool) -> dict:
    return {"name": name, "title": f"title of {name}", "is_rival": is_rival, "audio_s_per_s": rate}


def test_rates_of_fewer_blocks_are_scaled_to_the_whole_upstream():
    rows = [workload_row("ordinary", 0.5, True), workload_row("sorted", 2.0, True), workload_row("hooks", 2.5, True)]
    rows += [workload_row("float32", 4.0, False), {"name": "int8", "is_rival": False, "within_tolerance": False}]
    rates = rates_of({"name": "mixed", "clip_seconds": [8.0], "variants": rows}, "file")
    assert (rates.ordinary, rates.best, rates.best_title) == (0.5, 2.0, "title of sorted")  # 2.5 on 17 blocks is less
    share = rates.ours["float32"] / 4.0  # stem and projection, about an eighth of 24 blocks' work, do not shrink
    assert 17 / 24 < share < 20 / 24
    assert list(rates.ours) == ["float32"]
    passes, audio_s = 250, 1000.0
    again = over_rerun(rates, audio_s, "float32", passes, epoch_core_s=1.0)
    ours = audio_s / rates.ours["float32"] + passes
    assert again == {"best": pytest.approx(passes * 500 / ours), "ordinary": pytest.approx(passes * 2000 / ours)}


def test_rates_come_from_the_newest_result_of_the_device(tmp_path):
    for day, threads, rate in (("2026-01-31", 1, 1.0), ("2026-02-01", 1, 2.0), ("2026-03-01-corpus", 1, 3.0)):
        workload = {"name": "mixed", "clip_seconds": [8.0], "variants": [workload_row("ordinary", rate, True)]}
        two = {"threads": 2, "allocator": "default", "workloads": [workload | {"clip_seconds": None}]}
        run = {"threads": threads, "allocator": "default", "workloads": [workload]}
        (tmp_path / f"{day}-cpu.json").write_text(json.dumps({"runs": [two, run]}))
    (tmp_path / "search-cpu.json").write_text("{}")
    rates = newest_rates(tmp_path, "cpu")
    assert (rates.ordinary, rates.source) == (2.0, "2026-02-01-cpu.json")
    assert newest_rates(tmp_path, "cuda") is None


def test_the_search_page_says_which_goal_is_met():
    def row(name: str, precision: str, over_plain: float, shares: list[float], best: float) -> dict:
        speed = {"clips_per_s": 1.0, "share_of_bandwidth_bound": 0.1}
        by_layers = [{"layers": i, **speed, "share_of_bound": share} for i, share in enumerate(shares)]
        again = {epochs: {"best": best, "ordinary": 3 * best} for epochs in ("10", "100")}
        facts = {"name": name, "title": name, "precision": precision, "is_plain": name == "a", "processes": 1}
        speeds = {"by_layers": by_layers, "recursion_hours": 0.1, "over_plain": {"ratio": over_plain, "spread": None}}
        return facts | speeds | {"over_rerun": again}

    rows = [row("a", "float32", 99.0, [1.0], 999.0), row("c float32", "float32", 9.0, [0.9, 0.4], 500.0)]
    rows += [row("d float32", "float32", 8.0, [0.6, 0.7], 400.0), row("c bfloat16", "bfloat16", 20.0, [0.6], 600.0)]
    report = {"device": "cpu", "machine": {}, "settings": {"batch_size": 8, "rounds": 1}, "shape": [1, 2], "rows": rows}
    report["rates"] = dict.fromkeys(("float32", "bfloat16", "bytes"), 1e9)
    report["paper"] = {"train_clips": 1, "rounds": 1, "epochs": 1, "audio_s": 3600.0}
    report["upstream"] = {"source": "f", "ordinary": 1.0, "best": 2.0, "best_title": "HF", "ours": {"float32": 3.0}}

    def goals(report: dict) -> dict[str, list[str]]:
        lines = [line for line in search_markdown(report).partition("## Goals")[2].splitlines() if line.startswith("|")]
        cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if "---" not in line]
        return {own[0]: own[2:] for own in cells}

    assert goals(report) == {
        "goal": ["float32", "bfloat16"],
        "x (a)": ["9.0, c: missed", "20.0, c: met"],
        "share of the bound, at every number of layers": ["60%, d: met", "60%, c: met"],
        "x best HF": ["500.0, c: met", "600.0, c: met"],
        "x ordinary": ["1,500.0, c: missed", "1,800.0, c: met"],
    }
    for own in rows:
        own["over_rerun"] = {}
    on_gpu = goals(report | {"machine": {"gpu": "g"}, "upstream": None})
    assert on_gpu["minutes for the recursion"] == ["6.0, c: missed", "6.0, c: missed"]
    assert goals(report | {"upstream": None})["x best HF"] == ["not measured", "not measured"]


def test_table_is_markdown():
    assert table(["a", "b", "c"], [["x", "y", 1.5]]) == "| a | b |   c |\n| - | - | --: |\n| x | y | 1.5 |"


@pytest.mark.slow
def test_upstream_benchmark_writes_report_and_pictures(tmp_path, capsys, monkeypatch):
    """Memory is measured in this process, which is quicker, as its figures are no matter here."""

    def in_this_process(*settings) -> Iterator[memory.MemoryRow]:
        for name in memory.QUICK_VARIANTS:
            yield from memory._measure_variant(name, *settings)

    monkeypatch.setattr(bench_upstream, "measure_memory", in_this_process)
    path = tmp_path / "report.json"
    bench_upstream.main(["--quick", "--memory", "--workloads", "mixed", "8s", "--out", str(path)])
    assert "wavCSE float32" in capsys.readouterr().out
    (run,) = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert run["allocator"] == "default"
    assert {row["variant"] for row in run["memory"]} == {"ordinary", "float32"}
    assert [workload["name"] for workload in run["workloads"]] == ["mixed", "8s"]
    for workload in run["workloads"]:
        for row in workload["variants"]:
            assert row["within_tolerance"], row["name"]
            assert len(row["seconds"]) == workload["rounds"] == 2
    for suffix in (".md", ".png", ".svg"):
        assert path.with_suffix(suffix).stat().st_size > 0
    path.with_suffix(".png").unlink()
    bench_upstream.main(["--plot", str(path)])
    assert path.with_suffix(".png").exists()


@pytest.mark.slow
def test_upstream_benchmark_adds_memory_and_another_allocator(tmp_path):
    path = tmp_path / "report.json"
    run_script("bench_upstream.py", "--quick", "--memory", "--workloads", "8s", "--out", path)
    run_script("bench_upstream.py", "--quick", "--allocator", "warm", "--workloads", "8s", "--out", path)
    default, warm = json.loads(path.read_text(encoding="utf-8"))["runs"]
    assert (default["allocator"], warm["allocator"]) == ("default", "warm")
    assert all(row["within_tolerance"] for run in (default, warm) for row in run["workloads"][0]["variants"])
    assert {row["variant"] for row in default["memory"]} == {"ordinary", "float32"}


@pytest.mark.slow
def test_corpus_benchmark_writes_a_report(tmp_path, capsys):
    path = tmp_path / "corpus.json"
    bench_corpus.main(["--quick", "--out", str(path)])
    shown = capsys.readouterr().out
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [(row["workers"], row["busy"]) for row in report["rows"]] == [(1, 0), (1, 0), (2, 0), (1, 0), (2, 0), (2, 2)]
    assert all(0 <= row["waiting_percent"] <= 100 for row in report["rows"])
    (root,) = report["workers"]
    rates = [row["audio_s_per_s"] for row in report["rows"][3:]]
    assert rates == [root[name] for name in ("one_worker", "several_workers", "beside_busy_processes")]
    assert root["gain"]["ratio"] == pytest.approx(rates[1] / rates[0])
    assert root["busy_share"]["ratio"] == pytest.approx(rates[2] / rates[0])
    assert 10 < root["worker_mb"] < 1000
    assert path.with_suffix(".md").read_text(encoding="utf-8") in shown
