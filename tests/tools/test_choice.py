"""The choice of the root model: the best by validation of those that are fast and small enough; no test figure takes part."""

from __future__ import annotations

from dataclasses import replace

import pytest

from wavcse.tools.choice import Candidate, choice_facts, choice_text, measured_speeds

GOOD = Candidate("small", "pca", 2, 16, False, validation=0.80, validation_eer=0.05, megabytes=20.0)
CANDIDATES = [
    GOOD,
    replace(GOOD, name="trained", is_trained=True, validation=0.82),
    replace(GOOD, name="deep", blocks=4, validation=0.9),
    replace(GOOD, upstream="large", name="heavy", validation=0.95, megabytes=80.0, validation_eer=None),
]
SPEEDS = {("small", 2): 120.0, ("small", 4): 99.0, ("large", 2): 140.0}


def test_the_best_by_validation_of_those_within_the_limits_is_chosen():
    facts = choice_facts(CANDIDATES, SPEEDS)
    assert facts["best"] == {"upstream": "small", "name": "trained"}
    assert [row["is_eligible"] for row in facts["candidates"]] == [True, True, False, False]
    lines = choice_text(facts).splitlines()
    assert "| small | trained | 2 | 16 | yes | 82.0 | 5.0 | 120 | 20 | chosen |" in lines
    assert "| large | heavy | 2 | 16 | no | 95.0 | – | 140 | 80 | too slow or too large |" in lines


def test_none_is_chosen_where_all_are_too_slow():
    facts = choice_facts(CANDIDATES, dict.fromkeys(SPEEDS, 50.0))
    assert facts["best"] is None
    assert "no candidate is fast and small enough" in choice_text(facts)


def test_more_blocks_take_more_time(upstream_folder):
    speeds = measured_speeds({"toy": str(upstream_folder)}, [("toy", 1), ("toy", 2)])
    assert set(speeds) == {("toy", 1), ("toy", 2)}
    assert all(speed > 0 for speed in speeds.values())


@pytest.mark.parametrize("upstreams", ["{}", '{"other": "x"}'])
def test_every_study_needs_its_upstream(upstreams, capsys):
    from wavcse.tools.choice import main

    assert main(["--studies", '{"tiny": "study.yaml"}', "--upstreams", upstreams]) == 2
    assert "each needs both" in capsys.readouterr().err
