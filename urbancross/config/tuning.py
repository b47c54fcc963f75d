"""The verb that searches the settings of another one."""

import re
from typing import Literal, NamedTuple, Self

from pydantic import PositiveInt, field_validator, model_validator

from urbancross.config.adapting import AdaptConfig

BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(trials?|h|hours?|gpu-?h|gpu-hours?)?", re.IGNORECASE)


class Budget(NamedTuple):
    """What a sweep may spend; None: no end."""

    trials: int | None = None
    hours: float | None = None
    gpu_hours: float | None = None


class TuneConfig(AdaptConfig):
    """Search settings of adapt over whole training runs on Ray Tune, and write a report and the chosen settings.

    Every flag of adapt holds for all trials, but where --space searches it.
    """

    out: str
    """Folder of the sweep: outcomes, report.html, chosen.json, the chosen trial's checkpoint."""
    space: list[str] | None = None
    """A setting of adapt and its values, said again for each: ratio=1..10, pace=none,linear, head_lr=log:1e-5..1e-3,
    pace_start=0.1..0.9/5 for five points. max_segments=0 stands for no segments. Default: max_segments=0..10,
    ratio=1..10, pace=none,linear,root,step and pace_start=0.1..0.9."""
    search: Literal["tpe", "random", "grid"] = "tpe"
    """Which point comes next: Optuna's TPE, which learns from those before; chance; or all of a grid, in an order drawn
    by the seed."""
    scheduler: Literal["none", "asha"] = "none"
    """asha: at every --evaluate-steps, a third of which trials get three times as far, the others are stopped."""
    objective: Literal["agreement", "recall"] = "agreement"
    """What chooses. agreement: of the target's tiles with its texts, which needs no pair. recall: of its pairs, which
    is no longer unsupervised. Both are reported, both on split valid."""
    cost: Literal["none", "seconds", "embeddings"] = "none"
    """A second objective that is to be small: seconds of learning over all workers, or vectors that the heads compute.
    The chosen trial is then the cheapest one within the best one's interval."""
    budget: str | None = None
    """What to spend: 20 (trials), 2h, or 8gpu-h. Default: all points of a grid, 20 trials otherwise. A larger one goes
    on with the same command."""
    concurrent: PositiveInt = 1
    """Trials at the same time; with TPE their order then decides what comes next."""
    retry_failed: bool = False
    """Try failed trials again."""
    keep_checkpoints: bool = False
    """Keep the checkpoints of all trials, not of the chosen one alone."""

    @property
    def home(self) -> str:
        """Where its runs are recorded."""
        return self.out

    @property
    def limits(self) -> Budget:
        if self.budget is None:
            return Budget() if self.search == "grid" else Budget(trials=20)
        number, unit = BUDGET.fullmatch(self.budget.strip()).groups()  # type: ignore[union-attr]
        unit = (unit or "trials").lower()
        if unit.startswith("gpu"):
            return Budget(gpu_hours=float(number))
        return Budget(hours=float(number)) if unit.startswith("h") else Budget(trials=int(float(number)))

    @field_validator("budget")
    @classmethod
    def _is_spent(cls, told: str | None) -> str | None:
        if told is None:
            return None
        found = BUDGET.fullmatch(told.strip())
        if found is None or float(found[1]) <= 0:
            raise ValueError("want trials, hours or GPU-hours, such as 20, 2h or 8gpu-h")
        if (found[2] or "trial").lower().startswith("trial") and not float(found[1]).is_integer():
            raise ValueError("trials are whole")
        return told

    @model_validator(mode="after")
    def _ends(self) -> Self:
        if self.limits.gpu_hours is not None and not self.gpus_per_worker:
            raise ValueError(f"--budget {self.budget} never ends without GPUs; give --gpus-per-worker, or hours")
        if self.scheduler == "asha" and self.steps < 2 * self.evaluate_steps:
            raise ValueError(
                f"--scheduler asha stops trials at diagnoses, --steps {self.steps} with --evaluate-steps "
                f"{self.evaluate_steps} has none before the end; lower --evaluate-steps"
            )
        return self
