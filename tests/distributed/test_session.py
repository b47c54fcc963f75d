"""The Ray session that verbs work in."""

import resource
import threading

import pytest
import ray
import torch

from urbancross.progress import GIB


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_a_step_of_training_frees_is_there_for_the_next_one():
    @ray.remote(num_cpus=0)
    def faults() -> list[int]:
        found: list[int] = []

        def step() -> None:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(GIB // 16 // 4)
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        def learn() -> None:
            for _ in range(3):
                step()

        thread = threading.Thread(target=learn)  # as Ray Train has it
        thread.start()
        thread.join()
        return found

    first, *later = ray.get(faults.remote())
    pages = GIB // 16 // resource.getpagesize()
    assert max(later) < pages / 10 < first
