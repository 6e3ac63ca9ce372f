"""`python struck_sweep.py STRIKES OVERRIDES...`: a sweep whose jobs are struck within a step.

STRIKES is JSON, {seed: [step, what]}: the job with that seed is struck at that optimiser step
(counted from 0), after its weights have changed and before anything of it is saved. What: "error"
raises one that a user can mend; "bug" another; "SIGKILL" and other signals go to the job itself,
"sweep SIGINT" and the like to the process that was started for the sweep; the job waits for what
comes of it.
"""

import json
import os
import signal
import sys
import time

from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import DataError
from dermalyze.train import main

strikes = json.loads(sys.argv.pop(1))
sweep = os.getpid()
do_step = TrainingStep.__call__


def struck(self: TrainingStep, state: TrainState, *args: object) -> None:
    now = state.global_step
    do_step(self, state, *args)  # type: ignore[arg-type]
    step, what = strikes.get(str(self.seed), (None, None))
    if now != step:
        return
    if what == "error":
        raise DataError("an image cannot be read")
    if what == "bug":
        raise ZeroDivisionError("a bug")
    whom, _, name = f"itself {what}".rpartition(" ")
    if "sweep" not in whom:
        os.kill(os.getpid(), signal.Signals[name])
        return
    asked = []
    stop = signal.getsignal(signal.SIGINT)
    assert callable(stop)
    signal.signal(signal.SIGINT, lambda *which: (asked.append(which), stop(*which)))
    os.kill(sweep, signal.Signals[name])
    while not asked:
        time.sleep(0.01)


TrainingStep.__call__ = struck  # type: ignore[method-assign]
main()
