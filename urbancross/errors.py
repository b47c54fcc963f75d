"""Every exception that urbancross raises on purpose."""


class UrbanCrossError(Exception):
    """Catch this to catch all that is raised on purpose."""


class ConfigError(UrbanCrossError, ValueError):
    """Settings or inputs that cannot work; the job stops before any work (exit code 2)."""


class SchemaError(UrbanCrossError, ValueError):
    """A table lacks a column or holds another type (exit code 2)."""


class TileError(UrbanCrossError, ValueError):
    """One tile cannot be used; its row records the reason and the job goes on."""


class TileSkipped(TileError):
    """A tile needs no result; its row records why."""


class StorageError(UrbanCrossError, OSError):
    """A place cannot be read or written; worth another try (exit code 1)."""


class CheckpointError(UrbanCrossError, OSError):
    """A checkpoint is missing, cut short, or of another width (exit code 2)."""


class TrainingError(UrbanCrossError, RuntimeError):
    """Training met a loss that is not finite (exit code 1)."""


class StoppedEarly(UrbanCrossError):
    """Training was told to stop before its end; what it kept lies where it was."""


class WorkerError(UrbanCrossError, RuntimeError):
    """A worker process ended in a way that nobody foresaw (exit code 1)."""


class EngineError(UrbanCrossError, RuntimeError):
    """A model's engine or server keeps failing, whatever it is asked (exit code 1)."""


class NotReadyError(UrbanCrossError, RuntimeError):
    """A machine, a cluster, a model or an archive lacks what work needs (exit code 1)."""


class LeaseError(UrbanCrossError, RuntimeError):
    """Another run writes the same table (exit code 1)."""


class BudgetError(UrbanCrossError, RuntimeError):
    """More tiles failed than was allowed (exit code 1)."""
