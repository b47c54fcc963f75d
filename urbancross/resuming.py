"""Where a training that was stopped goes on: weights, optimisers and schedule after a step.

Nothing random is kept: every draw is a function of the seed and of where it is made (`drawn`), so that a run that was
stopped ends with the bits of one that was not.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from urbancross.errors import CheckpointError

State = dict[str, Any]


@dataclass(frozen=True)
class Moving:
    """What changes while a stage of training learns.

    Attributes:
        buffers: of modules, such as what spectral norm remembers from step to step.
    """

    optimisers: list[Optimizer]
    schedule: LRScheduler
    buffers: list[Tensor] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        return [*(parameter for group in groups for parameter in group["params"]), *self.buffers]


def drawn(*place: str | int) -> torch.Generator:
    """A generator for one place of one run, such as a seed, a stage, a step and a process."""
    digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Memory:
    """Keeps the state of a training every so many steps, and brings one back."""

    def __init__(self, found: State | None = None, every: int = 0, keep: Callable[[State], None] = lambda state: None):
        """
        Args:
            found: what an earlier run kept last.
            every: steps from one state to the next; 0: none is kept.
            keep: takes each state, on every process.
        """
        self.found, self.every, self.keep = found, every, keep

    def is_past(self, stage: str, later: Sequence[str]) -> bool:
        """Whether the state found is of a stage after this one."""
        return self.found is not None and self.found["stage"] != stage and self.found["stage"] in later

    def restore(self, stage: str, moving: Moving) -> int:
        """Bring back the state of a stage, where the one found is of it; how many of its steps are done.

        Raises:
            CheckpointError: the state does not fit.
        """
        found = self.found
        if found is None or found["stage"] != stage:
            return 0
        tensors = moving.tensors()
        if [kept.shape for kept in found["tensors"]] != [tensor.shape for tensor in tensors]:
            raise CheckpointError("the state that an earlier run kept is of another model")
        with torch.no_grad():
            for tensor, kept in zip(tensors, found["tensors"], strict=True):
                tensor.copy_(kept)
        for optimiser, kept in zip(moving.optimisers, found["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        moving.schedule.load_state_dict(found["schedule"])
        return int(found["step"])

    def after(self, stage: str, step: int, last: int, moving: Moving) -> None:
        """Keep the state after a step, if it is time; after the last step of a stage it always is."""
        if self.every and (step % self.every == 0 or step == last):
            self.keep(
                {
                    "stage": stage,
                    "step": step,
                    "tensors": [tensor.detach().cpu() for tensor in moving.tensors()],
                    "optimisers": [optimiser.state_dict() for optimiser in moving.optimisers],
                    "schedule": {k: v for k, v in moving.schedule.state_dict().items() if not callable(v)},
                }
            )


def to_bytes(state: State) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def from_bytes(data: bytes, where: str) -> State:
    """
    Raises:
        CheckpointError: the file is broken.
    """
    try:
        state: State = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch says of bytes that are no state
        raise CheckpointError(
            f"{where} cannot be read ({str(error).splitlines()[0]}); remove it to start over"
        ) from None
    return state
