"""The Ray session that verbs work in."""

import resource
import statistics
import threading

import pytest
import ray
import torch

from urbancross.progress import GIB

BYTES = GIB // 16


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_a_step_of_training_frees_is_there_for_the_next_one():
    @ray.remote(num_cpus=0)
    def faults() -> list[int]:
        found: list[int] = []

        def step() -> None:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.ones(BYTES // 4)
            found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

        def learn() -> None:
            for _ in range(60):
                step()

        thread = threading.Thread(target=learn)  # as Ray Train has it
        thread.start()
        thread.join()
        return found

    pages = BYTES // resource.getpagesize()
    found = ray.get(faults.remote())
    # What the worker had freed before serves the first step too, but is far from all that it asks for.
    assert found[0] > pages // 2
    # Now and then something of another thread lies in the way; without care each step would fault all of it.
    assert statistics.median(found) < pages // 100
