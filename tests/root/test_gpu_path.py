"""What runs on a GPU only, as far as a CPU can try it: transfers with a stand-in for the device, and the compiled kernel."""

import shutil
import warnings

import numpy as np
import pytest
import torch

from wavcse import feature_extraction_wavcse as extraction
from wavcse import packed_layers_wavcse
from wavcse.packed_encoder_wavcse import PackedUpstream
from wavcse.packed_layers_wavcse import FlexAttention

CUDA = torch.device("cuda")


class Transfers:
    """`torch` as `feature_extraction_wavcse` sees it, with a GPU whose memory is this machine's.

    A PyTorch without CUDA has neither pinned memory nor another device to send to, so both are stood in for: what is pinned
    is only remembered, and what is sent stays where it is.
    """

    def __init__(self, monkeypatch):
        self.pinned, self.sent = [], []
        monkeypatch.setattr(torch.Tensor, "to", lambda *tensor, **options: self._send(*tensor, **options))

    def __getattr__(self, name):
        return getattr(torch, name)

    def zeros(self, *size, pin_memory=False, **options):
        tensor = torch.zeros(*size, **options)
        if pin_memory:
            self.pinned.append(tensor.data_ptr())
        return tensor

    def tensor(self, values, device):
        assert device == CUDA
        return torch.tensor(values)

    def arange(self, count, device):
        assert device == CUDA
        return torch.arange(count)

    def _send(self, tensor, device, non_blocking=False):
        assert device == CUDA
        self.sent.append((tensor.dtype, tensor.data_ptr() in self.pinned, non_blocking))
        return tensor.clone()


@pytest.fixture
def transfers(monkeypatch):
    stand_in = Transfers(monkeypatch)
    monkeypatch.setattr(extraction, "torch", stand_in)
    return stand_in


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("kind", ["16 bits", "float32"])
def test_clips_travel_pinned_and_arrive_as_the_extractor_makes_them(transfers, monkeypatch, kind, do_normalize):
    generator = np.random.default_rng(0)
    clips = [generator.standard_normal(samples).astype(np.float32) * 0.1 for samples in (1600, 4000, 2500)]
    if kind == "16 bits":
        clips = [np.round(clip * 32768).astype(np.float32) / 32768 for clip in clips]
    arrived = extraction.send(clips, do_normalize, CUDA)
    assert transfers.sent == [(torch.int16 if kind == "16 bits" else torch.float32, True, True)]  # once, without waiting
    monkeypatch.undo()
    extractor = extraction.WavCSEFeatureExtractor(do_normalize=do_normalize)
    expected = extractor(clips, sampling_rate=16_000, return_tensors="pt")
    assert arrived["attention_mask"].tolist() == expected["attention_mask"].tolist()
    torch.testing.assert_close(arrived["input_values"], expected["input_values"], rtol=1e-5, atol=2e-6)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="a CPU kernel is compiled by a C++ compiler")
def test_the_compiled_kernel_attends_as_clip_by_clip_does(tiny_model, waves, monkeypatch):
    """Compiled for this CPU; Triton compiles the same function for a GPU."""
    monkeypatch.setattr(packed_layers_wavcse.Kernel, "compiled", None)
    monkeypatch.setattr(packed_layers_wavcse.Kernel, "is_broken", False)
    runner, layers = PackedUpstream(tiny_model().upstream.eval()), [0, 2, 3]
    clips = [torch.from_numpy(clip) for clip in waves(3_000, 40_000, 8_000)]
    with torch.no_grad():
        expected = runner(clips, layers)
        for block in runner.blocks:
            block.attention = FlexAttention(block.attention.num_heads, block.attention.bias)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="FlexAttention does not run here")
            found = runner(clips, layers)
    assert packed_layers_wavcse.Kernel.compiled is not None
    assert not packed_layers_wavcse.Kernel.is_broken
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
