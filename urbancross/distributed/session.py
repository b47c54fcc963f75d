"""The Ray session that a verb works in: the cluster it was submitted to, or one of its own on this machine."""

import logging
import os

import ray

OBJECT_STORE_BYTES = 512 << 20


def connect() -> None:
    """Join the cluster of `RAY_ADDRESS` (set inside `ray job submit`), or start a local one; once per process."""
    if ray.is_initialized():
        return
    quiet = {"configure_logging": True, "logging_level": logging.ERROR, "log_to_driver": False}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ side warns on stderr of what is routine here
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**quiet)
    else:
        # Two logical CPUs more than cores: Ray's own short tasks must find one while actors hold the rest.
        ray.init(
            address="local",
            num_cpus=(os.cpu_count() or 1) + 2,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            **quiet,
        )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # progress is told in tiles, by `urbancross.progress`
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    logging.getLogger("ray.train").setLevel(logging.ERROR)
