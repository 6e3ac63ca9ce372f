"""`python struck_predict.py PART OVERRIDES...`: predict, and be killed before part PART is kept.

What predicting has imported is said just before.
"""

import os
import signal
import sys

from dermalyze.predict import main
from dermalyze.prediction.parts import Parts

part = int(sys.argv.pop(1))
keep = Parts.keep


def struck(self: Parts, number: int, records: list[dict[str, object]]) -> None:
    if number == part:
        heavy = {"mlflow", "sklearn", "matplotlib", "torch"}
        print("imported:", *sorted(heavy & sys.modules.keys()), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    keep(self, number, records)


Parts.keep = struck  # type: ignore[method-assign]
main()
