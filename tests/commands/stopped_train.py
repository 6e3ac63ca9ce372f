"""`python stopped_train.py STEP SIGNAL OVERRIDES...`: train, and get a signal within one step.

The signal strikes after the weights of optimiser step STEP (counted from 0) have changed, before
anything of it is saved.
"""

import os
import signal
import sys

from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.train import main

step, name = int(sys.argv.pop(1)), sys.argv.pop(1)
do_step = TrainingStep.__call__


def struck(self: TrainingStep, state: TrainState, *args: object) -> None:
    now = state.global_step
    do_step(self, state, *args)  # type: ignore[arg-type]
    if now == step:
        os.kill(os.getpid(), signal.Signals[name])


TrainingStep.__call__ = struck  # type: ignore[method-assign]
main()
