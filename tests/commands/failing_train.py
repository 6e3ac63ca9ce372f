"""`python failing_train.py RANK STEP OVERRIDES...`: train, and let one process fail at a step."""

import os
import sys

from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import DataError
from dermalyze.train import main

rank, step = sys.argv.pop(1), int(sys.argv.pop(1))
do_step = TrainingStep.__call__


def failing(self: TrainingStep, state: TrainState, *args: object) -> None:
    if state.global_step == step and os.environ["RANK"] == rank:
        raise DataError("an image of this rank cannot be read")
    do_step(self, state, *args)  # type: ignore[arg-type]


TrainingStep.__call__ = failing  # type: ignore[method-assign]
main()
