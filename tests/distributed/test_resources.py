"""What workers ask of Ray, and how many fit, on clusters of made-up size."""

import pytest

from urbancross.config import WorkersConfig
from urbancross.distributed import resources
from urbancross.distributed.resources import asked, options, require_resources, workers_that_fit
from urbancross.errors import ConfigError
from urbancross.progress import GIB

CLUSTER = {"CPU": 17, "GPU": 4, "memory": 64 * GIB, "accelerator_type:A10G": 2, "node:x": 1}
SAM = WorkersConfig(cpus_per_worker=2, gpus_per_worker=0.5, memory_gib_per_worker=12, accelerator="A10G", workers=8)


@pytest.fixture(autouse=True)
def cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: CLUSTER)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_what_is_asked_for_goes_to_ray_by_its_names():
    assert asked(WorkersConfig()) == {"CPU": 1}
    assert asked(SAM) == {"CPU": 2, "GPU": 0.5, "memory": 12 * GIB, "accelerator_type:A10G": 0.001}
    assert options(WorkersConfig()) == {"num_cpus": 1, "num_gpus": 0, "memory": None}
    told = {"num_cpus": 2, "num_gpus": 0.5, "memory": 12 * GIB, "resources": {"accelerator_type:A10G": 0.001}}
    assert options(SAM) == told


def test_the_scarcest_decides_how_many_fit(capsys: pytest.CaptureFixture[str]):
    assert workers_that_fit(SAM, 100) == (5, 5)  # 64 GiB hold five of 12
    wants = "2 CPUs and 0.5 GPUs and 12 GiB of memory and an accelerator A10G"
    assert f"note: 5 workers instead of 8: each wants {wants}" in capsys.readouterr().err
    assert workers_that_fit(SAM.model_copy(update={"memory_gib_per_worker": 1}), 100) == (8, 8)
    assert workers_that_fit(SAM, 3) == (3, 3)


def test_a_cluster_may_grow_and_this_machine_does_not(monkeypatch: pytest.MonkeyPatch):
    h100 = SAM.model_copy(update={"accelerator": "H100"})
    with pytest.raises(
        ConfigError, match="this machine offers .* and no accelerator H100, one CPU stays free; lower .*"
    ):
        workers_that_fit(h100, 100)
    with pytest.raises(ConfigError, match="--workers 8 want 12 GiB of memory each, this machine offers 64 GiB"):
        require_resources(SAM)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    require_resources(SAM)
    assert workers_that_fit(h100, 100) == (1, 8)
