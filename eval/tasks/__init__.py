"""The downstream tasks, one short file each, in the order in which tables show them."""

from wavcse.eval.task import Task
from wavcse.eval.tasks.emotion import EMOTION
from wavcse.eval.tasks.keyword import KEYWORD
from wavcse.eval.tasks.speaker import SPEAKER

TASKS: dict[str, Task] = {task.name: task for task in (KEYWORD, SPEAKER, EMOTION)}
