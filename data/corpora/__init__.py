"""Public corpora, one file each: from a corpus's official folders and lists to a manifest."""

from wavcse.data.corpora.aesdd import AESDD
from wavcse.data.corpora.cafe import CAFE
from wavcse.data.corpora.cnceleb1 import CNCELEB1
from wavcse.data.corpora.common_voice import COMMON_VOICE
from wavcse.data.corpora.corpus import Corpus
from wavcse.data.corpora.fluent_speech_commands import FLUENT_SPEECH_COMMANDS
from wavcse.data.corpora.football import FOOTBALL
from wavcse.data.corpora.hub5_2000 import HUB5_2000
from wavcse.data.corpora.iemocap import IEMOCAP
from wavcse.data.corpora.kathbath import KATHBATH
from wavcse.data.corpora.librispeech import LIBRISPEECH
from wavcse.data.corpora.slurp import SLURP
from wavcse.data.corpora.speech_commands import V1, V2
from wavcse.data.corpora.sre08 import SRE08
from wavcse.data.corpora.timit import TIMIT
from wavcse.data.corpora.voxceleb1 import VOXCELEB1
from wavcse.data.corpora.voxceleb2 import VOXCELEB2
from wavcse.data.corpora.voxforge import VOXFORGE

PHASE_1 = (V1, V2, VOXCELEB1, IEMOCAP)
PHASE_2 = (FOOTBALL, VOXFORGE, KATHBATH, CNCELEB1, TIMIT, AESDD, FLUENT_SPEECH_COMMANDS)
SPEECH_AND_SPEAKERS = (LIBRISPEECH, VOXCELEB2, HUB5_2000, SRE08)  # Vaessen and van Leeuwen (2023), with VoxCeleb1
ANALYSED = (SLURP, CAFE, COMMON_VOICE)  # Porjazovski, Grosz and Kurimo (2024), with LibriSpeech and IEMOCAP
CORPORA: dict[str, Corpus] = {corpus.facts.name: corpus for corpus in (*PHASE_1, *PHASE_2, *SPEECH_AND_SPEAKERS, *ANALYSED)}
