"""Public corpora, one file each: from a corpus's official folders and lists to a manifest."""

from wavcse.data.corpora.corpus import Corpus
from wavcse.data.corpora.iemocap import IEMOCAP
from wavcse.data.corpora.speech_commands import V1, V2
from wavcse.data.corpora.voxceleb1 import VOXCELEB1

CORPORA: dict[str, Corpus] = {corpus.name: corpus for corpus in (V1, V2, VOXCELEB1, IEMOCAP)}
