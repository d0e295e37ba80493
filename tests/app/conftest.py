"""A small model with heads, saved and loaded again, for the tests of the page and of what it answers."""

from __future__ import annotations

import pytest

from wavcse import WavCSEForMultiTask


@pytest.fixture(scope="module")
def hub(tiny_multi_task_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    tiny_multi_task_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(hub):
    return WavCSEForMultiTask.from_pretrained(hub).eval()
