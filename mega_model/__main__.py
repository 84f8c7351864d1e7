"""`python -m mega_model <verb>`, and so `torchrun -m mega_model train ...`: mega_model's verbs, without mega_ros."""

import sys

from mega_model.core.commands import run
from mega_model.core.verbs import VERBS

if __name__ == "__main__":
    sys.exit(run(VERBS, sys.argv[1:]))
