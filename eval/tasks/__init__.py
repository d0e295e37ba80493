"""The downstream tasks, one short file each, in the order in which tables show them: the paper's twelve, in ten, and texts."""

from wavcse.eval.tasks.affect import AFFECT
from wavcse.eval.tasks.age import AGE
from wavcse.eval.tasks.definition import Task
from wavcse.eval.tasks.dialect import DIALECT
from wavcse.eval.tasks.emotion import EMOTION
from wavcse.eval.tasks.gender import GENDER
from wavcse.eval.tasks.intent import INTENT
from wavcse.eval.tasks.keyword import KEYWORD
from wavcse.eval.tasks.language import LANGUAGE
from wavcse.eval.tasks.speaker import SPEAKER
from wavcse.eval.tasks.transcription import TRANSCRIPTION
from wavcse.eval.tasks.verification import VERIFICATION

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(KEYWORD, LANGUAGE, SPEAKER, VERIFICATION, GENDER, AGE, DIALECT, EMOTION, AFFECT, INTENT),
        TRANSCRIPTION,
    )
}
