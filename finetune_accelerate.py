"""Train a whole upstream on several tasks at once, in one process or in many.

    accelerate launch finetune_accelerate.py conf/mtl_synthetic.yaml --out runs/mine

The same as `wavcse finetune`; what a run leaves says `finetuning/multi_task.py`.
"""

from __future__ import annotations

from wavcse.finetuning.arguments import FINETUNING

if __name__ == "__main__":
    FINETUNING.answer()  # before anything is loaded that takes seconds

import sys

from wavcse.finetuning.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
