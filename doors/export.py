"""A model as an ONNX file or a `torch.export` program: `wavcse export`, whose options and help are in `doors/arguments.py`."""

from __future__ import annotations

from wavcse.doors.arguments import EXPORT, ExportArguments

if __name__ == "__main__":
    EXPORT.answer()  # before the imports below, which take seconds

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from wavcse import __version__
from wavcse.audio_wavcse import load_waveform
from wavcse.data.files import kept_json, write_atomically, write_json
from wavcse.doors.exportable import ExportableModel, example_inputs
from wavcse.eval.encoder import SavedModel
from wavcse.feature_extraction_wavcse import WavCSEFeatureExtractor
from wavcse.hub_repository_wavcse import EXPORTS, exported_files, is_generated
from wavcse.modeling_wavcse import WavCSEModel
from wavcse.settings.command import DONE
from wavcse.settings.libraries import optional_library

EXTRA = "onnx"
INPUTS = ("input_values", "attention_mask")
OUTPUTS = ("embeddings", "frames", "num_frames")
TITLE, NEXT_TITLE = "## Exported files", "## Python files that run"  # of the model card
CHECK_S = (0.3, 1.7, 3.0, 0.9, 2.2)  # noise that a file is tried with
SPEED_CLIPS, SPEED_S, SPEED_RUNS = 8, 4.0, 3
MOST_BYTES_IN_ONE = 1_800_000_000  # a protobuf file ends at 2 GB; the weights then lie beside it

Run = Callable[[Tensor, Tensor], Tensor]  # input_values, attention_mask -> embeddings


def export_program(model: WavCSEModel, with_frames: bool = False) -> torch.export.ExportedProgram:
    """The model as a program of `torch.export` with dynamic batch and time; its inputs are `INPUTS`.

    Raises:
        ValueError: the model cannot be exported.
    """
    auto = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    with torch.no_grad(), quiet():
        return torch.export.export(
            ExportableModel(model, with_frames), example_inputs(model.config), dynamic_shapes=(auto, auto)
        )


def write_torch_export(model: WavCSEModel, path: Path, with_frames: bool = False) -> None:
    """Write a `.pt2` file, which `torch.export.load` reads; arguments and errors as of `export_program`."""
    program = export_program(model, with_frames)
    with _moved_to(path) as new:
        torch.export.save(program, new)


def write_onnx(model: WavCSEModel, path: Path, with_frames: bool = False, precision: str = "float32") -> None:
    """Write an ONNX file; weights of more than 2 GB lie in `<name>.data` beside it.

    Args:
        precision: "int8" quantises matrix products dynamically: weights to 8 bits, what they meet while they run.

    Raises:
        ImportError: onnx, onnxscript or onnxruntime is not installed.
        ValueError: as `export_program`.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        optional_library(name, EXTRA)
    is_large = 4 * model.num_parameters() > MOST_BYTES_IN_ONE
    names = OUTPUTS if with_frames else OUTPUTS[:1]
    program = export_program(model, with_frames)
    with quiet(), _moved_to(path) as new:
        graph = torch.onnx.export(program, dynamo=True, input_names=INPUTS, output_names=names, verbose=False)
        if precision == "float32":
            graph.save(new, external_data=is_large)
            return
        with tempfile.TemporaryDirectory(dir=new.parent.parent) as folder:
            plain = Path(folder, "plain.onnx")
            graph.save(plain, external_data=is_large)
            _quantise(plain, new, is_large)


@contextmanager
def _moved_to(path: Path) -> Iterator[Path]:
    """A path to write to; the file, and what was written beside it, take their places at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        yield Path(folder, path.name)
        for part in sorted(Path(folder).iterdir()):
            os.replace(part, path.parent / part.name)


def _quantise(plain: Path, out: Path, is_large: bool) -> None:
    """Dynamic int8 of the matrix products; convolutions, which onnxruntime runs slower in int8, stay as they are."""
    quantization = optional_library("onnxruntime.quantization", EXTRA)
    quantization.quantize_dynamic(
        plain,
        out,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        use_external_data_format=is_large,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters tell of their own work."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def load_run(path: Path) -> Run:
    """What computes embeddings from an exported file."""
    if path.suffix == ".pt2":
        program = torch.export.load(path).module()
        return lambda *inputs: _first(program(*inputs))
    onnxruntime = optional_library("onnxruntime", EXTRA)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda *inputs: torch.from_numpy(
        session.run(list(OUTPUTS[:1]), {name: one.numpy() for name, one in zip(INPUTS, inputs)})[0]
    )


def _first(outputs: Tensor | tuple[Tensor, ...]) -> Tensor:
    return outputs[0] if isinstance(outputs, tuple) else outputs


def padded(waveforms: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Waveforms `[samples]` as `INPUTS`: `[B, samples]` with zeros at the end, and the mask."""
    values = nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
    mask = nn.utils.rnn.pad_sequence(
        [torch.ones(len(waveform), dtype=torch.int32) for waveform in waveforms], batch_first=True
    )
    return values, mask


@torch.inference_mode()
def compared(model: WavCSEModel, run: Run, waveforms: Sequence[Tensor]) -> dict[str, float]:
    """What an exported file gives beside the model.

    Returns:
        `error`: largest difference in one padded batch, as a share of the largest number of an embedding; `batch_error`:
        the same between a clip alone and in that batch; `cosine`: the smallest between the file's embedding and the model's.
    """
    own = model(list(waveforms), precision="float32", return_dict=True).embeddings
    together = run(*padded(waveforms))
    alone = torch.cat([run(*padded([waveform])) for waveform in waveforms])
    scale = own.abs().max().item()
    return {
        "error": (together - own).abs().max().item() / scale,
        "batch_error": (together - alone).abs().max().item() / scale,
        "cosine": nn.functional.cosine_similarity(together.double(), own.double()).min().item(),
    }


@torch.inference_mode()
def speeds(model: WavCSEModel, run: Run) -> dict[str, float]:
    """Seconds of audio per second through the file and through the model, on clips of one length; the best of some runs."""
    samples = round(SPEED_S * model.config.sampling_rate)
    waveforms = list(torch.randn(SPEED_CLIPS, samples, generator=torch.Generator().manual_seed(0)))
    inputs = padded(waveforms)
    ways = {"speed": lambda: run(*inputs), "model_speed": lambda: model(waveforms, precision="float32", return_dict=True)}
    found = {}
    for name, compute in ways.items():
        compute()
        times = []
        for _ in range(SPEED_RUNS):
            start = time.perf_counter()
            compute()
            times.append(time.perf_counter() - start)
        found[name] = SPEED_CLIPS * SPEED_S / min(times)
    return {**found, "threads": torch.get_num_threads()}


def check_waveforms(model: WavCSEModel, clips: Sequence[str] = ()) -> list[Tensor]:
    """Recordings, or noise of several lengths, as they go into the model.

    Raises:
        ValueError: a recording cannot be used, or is longer than the window up to which the model runs a clip in one piece.
    """
    extractor = WavCSEFeatureExtractor.from_config(model.config)
    rate = model.config.sampling_rate
    generator = np.random.default_rng(0)
    loaded = [load_waveform(clip, rate, clip, model.config.window_s) for clip in clips]
    loaded = loaded or [(0.1 * generator.standard_normal(round(seconds * rate))).astype(np.float32) for seconds in CHECK_S]
    for waveform, name in zip(loaded, [*clips, *CHECK_S]):
        extractor.check(waveform, str(name))
    return extractor.prepare(loaded, "cpu")


def file_of(args: ExportArguments) -> Path:
    """Where a file lies in the folder: `onnx/model.onnx`, `onnx/model_qint8.onnx`, `torch_export/model.pt2` and so on."""
    suffix = "_frames" * args.frames + "_qint8" * (args.precision == "int8")
    return Path("onnx", f"model{suffix}.onnx") if args.format == "onnx" else Path("torch_export", f"model{suffix}.pt2")


def write_to_card(folder: Path) -> bool:
    """Put what `exports.json` says into a generated model card, over what it said before; False if the card is not ours."""
    card = folder / "README.md"
    if not card.is_file() or not is_generated(card):
        return False
    before, _, after = card.read_text(encoding="utf-8").partition(NEXT_TITLE)
    section = f"{TITLE}\n\n{exported_files(folder)}\n\n"
    write_atomically(card, f"{before.partition(TITLE)[0]}{section}{NEXT_TITLE}{after}")
    return True


@EXPORT.main
def main(args: ExportArguments) -> int:
    """The command line."""
    where = SavedModel.parse(args.model)
    model = WavCSEModel.from_pretrained(where.path, revision=where.revision).eval()
    waveforms = check_waveforms(model, args.clips)
    folder, name = Path(args.out or args.model), file_of(args)
    path = folder / name
    if args.format == "onnx":
        write_onnx(model, path, args.frames, args.precision)
    else:
        write_torch_export(model, path, args.frames)
    run = load_run(path)
    found = {**compared(model, run, waveforms), **speeds(model, run), "megabytes": _megabytes(path)}
    versions = {"weights_sha256": where.weights_sha256(), "wavcse_version": __version__, "torch_version": torch.__version__}
    exports = {**(kept_json(folder / EXPORTS) or {}), name.as_posix(): {**found, **versions}}
    write_json(folder / EXPORTS, exports, indent=1)
    print(
        f"{path}: {found['megabytes']:.1f} MB; beside the model: error {found['error']:.1e}, cosine {found['cosine']:.6f}; "
        f"alone and in a batch {found['batch_error']:.1e}\n{found['speed']:.0f} audio-s/s, the model itself "
        f"{found['model_speed']:.0f}, {found['threads']} threads"
    )
    is_written = write_to_card(folder)
    print(f"{folder / 'README.md'}: {'says so' if is_written else 'is no generated card and was left as it is'}")
    return DONE


def _megabytes(path: Path) -> float:
    return sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*")) / 1e6


if __name__ == "__main__":
    sys.exit(main())
