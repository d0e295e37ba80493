"""Quantised embeddings: by hand, at the door of `encode`, with ranges of a table, and as sentence-transformers does it."""

import numpy as np
import pandas as pd
import pytest
import torch

from wavcse import quantize_embeddings
from wavcse.data.embedding_table import write_table
from wavcse.data.stored_embeddings import StoredEmbeddings
from wavcse.modeling_wavcse import QUANTIZATIONS


def test_levels_and_bits_are_those_by_hand():
    ranges = np.array([[-1.0, 0.0, 5.0], [1.0, 510.0, 5.0]])
    embeddings = np.array([[-1.0, 0.0, 5.0], [1.5, 3.9, 7.2], [-9.0, 999.0, 4.0]])
    wanted = np.array([[0, 0, 0], [255, 1, 2], [0, 255, 0]])
    np.testing.assert_array_equal(quantize_embeddings(embeddings, "uint8", ranges), wanted)
    found = quantize_embeddings(torch.tensor(embeddings), "int8", ranges)
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, wanted - 128)
    signs = np.array([[1, -1, 0, 2, -3, -1, -1, 1, 5, -1]])
    assert quantize_embeddings(signs, "ubinary").tolist() == [[0b10010001, 0b10000000]]
    assert quantize_embeddings(signs, "binary").tolist() == [[0b10010001 - 128, 0]]


def test_encode_quantises_what_it_returns(tiny_model, waves):
    model, clips = tiny_model(), waves(4000, 5000, 6000)
    full = model.encode(clips, truncate_dim=12)
    ranges = np.stack([full.min(0), full.max(0)])
    for precision in QUANTIZATIONS:
        found = model.encode(clips, truncate_dim=12, quantize=precision, ranges=ranges)
        np.testing.assert_array_equal(found, quantize_embeddings(full, precision, ranges))
        one = model.encode(clips[1], truncate_dim=12, quantize=precision, ranges=ranges, convert_to_numpy=False)
        np.testing.assert_array_equal(one, quantize_embeddings(model.encode(clips[1], truncate_dim=12), precision, ranges))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int4"}, "cannot be quantised to 'int4'; allowed: int8, uint8, binary, ubinary"),
        ({"quantize": "int8"}, r"ranges are not given; \[2, 20\] is needed"),
        ({"quantize": "int8", "ranges": np.zeros((2, 9))}, r"ranges have shape \[2, 9\]"),
        ({"precision": "ubinary"}, "give quantize='ubinary'"),
    ],
)
def test_what_cannot_be_quantised_is_said_before_anything_is_read(options, message, tiny_model):
    with pytest.raises(ValueError, match=message):
        tiny_model().encode("absent.wav", **options)


def test_ranges_of_a_table_are_its_extremes(tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(9000, 5)).astype(np.float32)
    rows = pd.DataFrame({"id": [str(row) for row in range(9000)]})
    write_table(tmp_path / "t.parquet", rows, embeddings, {"embedding_size": 5})
    np.testing.assert_array_equal(StoredEmbeddings(tmp_path / "t.parquet").ranges(), [embeddings.min(0), embeddings.max(0)])


@pytest.mark.doors
@pytest.mark.parametrize("precision", QUANTIZATIONS)
def test_numbers_are_those_of_sentence_transformers(precision):
    quantization = pytest.importorskip("sentence_transformers.util.quantization")
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(200, 37)).astype(np.float32)
    calibration = generator.normal(size=(500, 37)).astype(np.float32)
    ranges = np.stack([calibration.min(0), calibration.max(0)])
    theirs = quantization.quantize_embeddings(embeddings, precision, calibration_embeddings=calibration)
    mine = quantize_embeddings(embeddings, precision, ranges)
    assert mine.dtype == theirs.dtype
    np.testing.assert_array_equal(mine, theirs)
