"""The options of `wavcse corpora`. Nothing here loads PyTorch, so that `--help` is answered at once."""

from __future__ import annotations

from dataclasses import dataclass

from wavcse.data.corpora import CORPORA
from wavcse.settings.command import Program
from wavcse.settings.fields import NEEDED, CheckedFields, operand, option


@dataclass
class CorporaArguments(CheckedFields):
    """Which corpus, where it is, and how it is labelled."""

    corpus: str = operand("Which one; the list above has them.", choices=tuple(CORPORA))
    root: str = option(NEEDED, "Folder of the unpacked corpus (with --hub_id: where the copy is written).", value="DIR")
    out: str = option(NEEDED, "The manifest; paths in it are relative to it.", value="FILE.csv")
    protocol: str | None = option(None, "How it is labelled and split; see above.", "the first", value="NAME")
    allow_partial: bool = option(False, "Write what is there of an incomplete corpus, and say what is missing.")
    hub_id: str | None = option(
        None,
        "First write this copy (Parquet with a column audio) below --root in the official layout.",
        value="ID",
        group="copies on the Hub",
    )
    hub_config: str | None = option(None, "Its configuration.", value="NAME")
    hub_revision: str | None = option(None, "Its branch or commit, for example refs/convert/parquet.", value="REV")


def _described() -> str:
    lines = ["corpora, the layout below --root, and protocols:"]
    for name, corpus in CORPORA.items():
        facts = corpus.facts
        lines += [f"  {name}: {corpus.layout}", f"    from {facts.source}; licence: {facts.licence}"]
        lines += [f"    {protocol}: {text}" for protocol, text in facts.protocols.items()]
    return "\n".join(lines)


CORPORA_PROGRAM = Program(
    "wavcse corpora",
    CorporaArguments,
    f"""\
Write the manifest of a public corpus from its official folders and lists. Nothing is downloaded, unless --hub_id names a
copy. The numbers of clips are checked against the complete corpus. Exit codes: 0 done, 2 refused, 3 done with
--allow_partial, but the corpus is not complete.

{_described()}
""",
    "wavcse corpora voxceleb1 --root /data/voxceleb1 --out manifests/voxceleb1.csv --protocol superb",
    continues=True,
)
