"""What a study found: a table, the best trial, its course, and which parameters mattered."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial, TrialState

from dermalyze.evaluation.figure_style import BLUE, GREY, ORANGE, add_footer, layout
from dermalyze.evaluation.plots import save_figure
from dermalyze.files import write_whole
from dermalyze.search.study import FOLDER, REASON, Study
from dermalyze.taxonomy import DISCLAIMER

TABLE, BEST = "trials.csv", "optimization_results.yaml"
HISTORY, IMPORTANCES = "history.png", "importances.png"
# With fewer, a forest over trials has nothing to split.
FEWEST_FOR_IMPORTANCES = 4
SHOWN = 5

STATES = {
    TrialState.COMPLETE: "done",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "begun",
    TrialState.WAITING: "waiting",
}


def best_first(study: Study) -> list[FrozenTrial]:
    """Return the trials that are done, the best first."""
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    return sorted(done, key=_value, reverse=study.maximises)


def _value(trial: FrozenTrial) -> float:
    return math.nan if trial.value is None else trial.value


def write_results(study: Study) -> list[Path]:
    """Write what the study found so far into its folder; return the files."""
    folder, trials = study.options.place, study.trials
    made = [folder / TABLE, folder / HISTORY]
    write_whole(made[0], _table(trials))
    save_figure(_history(study), made[1])
    best = best_first(study)
    if best:
        made.append(folder / BEST)
        found = {
            "name": "optuna",
            "best_params": best[0].params,
            "best_value": best[0].value,
            "best_trial": best[0].number,
            "monitor": study.monitor,
            "folder": best[0].user_attrs[FOLDER],
            "disclaimer": DISCLAIMER,
        }
        write_whole(made[-1], OmegaConf.to_yaml(OmegaConf.create(found)))
    shares = importances(study)
    if shares:
        made.append(folder / IMPORTANCES)
        save_figure(_bars(shares, study.monitor), made[-1])
    return made


def importances(study: Study) -> dict[str, float]:
    """Return how much of what a random forest over the trials explains goes to each parameter.

    By mean decrease in impurity (Breiman 2001): shares that sum to 1, the largest first. Of
    parameters that all trials have, among those that are done. Empty where too few are done, or
    all with one result.
    """
    done = best_first(study)
    if len(done) < FEWEST_FOR_IMPORTANCES or done[0].value == done[-1].value:
        return {}
    forest = optuna.importance.MeanDecreaseImpurityImportanceEvaluator(seed=study.options.seed)
    shares = optuna.importance.get_param_importances(study.optuna, evaluator=forest)
    return {name: float(share) for name, share in shares.items()}


def results_text(study: Study) -> str:
    """Return the best trials, a line each, and how many there are of each state."""
    trials, best = study.trials, best_first(study)
    counts = {word: sum(STATES[t.state] == word for t in trials) for word in STATES.values()}
    said = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    sense = "larger" if study.maximises else "smaller"
    lines = [
        f"study {study.options.study}: {len(trials)} of {study.options.n_trials} trials: {said}; "
        f"{study.monitor}, {sense} is better"
    ]
    for trial in best[:SHOWN]:
        params = " ".join(f"{name}={_short(value)}" for name, value in trial.params.items())
        lines.append(f"  trial {trial.number:>3}  {trial.value:.4f}  {params}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _table(trials: Sequence[FrozenTrial]) -> str:
    names = sorted({name for trial in trials for name in trial.params})
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", "state", "value", "epochs", *names, "folder", "reason"])
    for trial in trials:
        writer.writerow(
            [
                trial.number,
                STATES[trial.state],
                trial.value,
                len(trial.intermediate_values),
                *(trial.params.get(name) for name in names),
                trial.user_attrs.get(FOLDER),
                trial.user_attrs.get(REASON),
            ]
        )
    return text.getvalue()


def _history(study: Study) -> Figure:
    """Draw each trial's value, those that were stopped hollow, and the best until then."""
    figure = Figure(figsize=(8, 4.5), layout=layout())
    axes = figure.subplots()
    done = [trial for trial in study.trials if trial.state is TrialState.COMPLETE]
    pruned = [
        trial
        for trial in study.trials
        if trial.state is TrialState.PRUNED and trial.value is not None
    ]
    best_of = np.maximum if study.maximises else np.minimum
    values_N = np.array([_value(trial) for trial in done])
    numbers = [trial.number for trial in done]
    if done:
        axes.step(
            numbers, best_of.accumulate(values_N), where="post", color=ORANGE, label="best so far"
        )
    axes.scatter(numbers, values_N, color=BLUE, label="done", zorder=3)
    axes.scatter(
        [trial.number for trial in pruned],
        [_value(trial) for trial in pruned],
        facecolors="none",
        edgecolors=GREY,
        label="pruned: where it was stopped",
        zorder=3,
    )
    axes.set(xlabel="trial", ylabel=study.monitor, title=f"study {study.options.study}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False)
    add_footer(figure)
    return figure


def _bars(shares: dict[str, float], monitor: str) -> Figure:
    figure = Figure(figsize=(8, 1.6 + 0.4 * len(shares)), layout=layout())
    axes = figure.subplots()
    names = list(reversed(shares))
    bars = axes.barh(names, [shares[name] for name in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(
        xlim=(0, 1.1),
        xlabel="share of what a forest over the trials explains",
        title=f"what mattered for {monitor}",
    )
    add_footer(figure)
    return figure
