"""The stage that made a table, from what its maker wrote beside the shards."""

from collections.abc import Callable, Iterable
from typing import Any

from pydantic import ValidationError

from urbancross import config as settings
from urbancross.distributed import (
    auditing,
    captioning,
    duplicates,
    embedding,
    features,
    geotagging,
    ingest,
    ranking,
    segmentation,
)
from urbancross.distributed.stages import Stage
from urbancross.errors import ConfigError
from urbancross.storage import Place
from urbancross.tables import claimed, require_shards

# Settings of the run that made a table, and its archive, to the stages of such a run.
STAGES: dict[type[settings.WorkersConfig], Callable[[Any, Place], Iterable[Stage]]] = {
    settings.IngestConfig: lambda told, _: ingest.stages(told),
    settings.GeotagConfig: lambda told, _: geotagging.stages(told),
    settings.CaptionConfig: captioning.stages,
    settings.SegmentConfig: lambda told, _: segmentation.stages(told),
    settings.RankConfig: ranking.stages,
    settings.EmbedConfig: embedding.stages,
    settings.AuditConfig: lambda told, _: auditing.stages(told),
    settings.DuplicatesConfig: duplicates.stages,
    settings.PretrainConfig: features.stages,
    settings.AdaptConfig: features.stages,
}
VARIANTS = {"captions": "captions", "target_captions": "captions", "segments": "segments", "ranks": "ranks"}


def config_of(archive: Place, table: str) -> Any:
    """The settings of the run that made a table.

    Raises:
        ConfigError: there is no such table, or it does not say what made it.
    """
    require_shards(archive, table)
    if table == "plan":
        raise ConfigError("the plan is made by ingest alone and has no failures to retry; give another --table")
    if table.partition("@")[0] == "map":
        raise ConfigError(f"{table} holds features, not tiles, so that there is nothing to retry; give another --table")
    maker = claimed(archive / table) or {}
    run = maker.get("run")
    kinds = {kind.__name__: kind for kind in STAGES}
    kind = kinds.get(run.get("kind", "")) if isinstance(run, dict) and isinstance(run.get("config"), dict) else None
    if run is None or kind is None:
        raise ConfigError(
            f"{archive / table} does not say which run made it; only urbancross's own tables can be redone"
        )
    told = run["config"] | ({"archive": str(archive)} if "archive" in kind.model_fields else {})
    # Where a run was not told a variant there was one alone; by now there may be more.
    for flag, table_kind in VARIANTS.items():
        if flag in kind.model_fields and told.get(flag) is None:
            made_from = [name for name in maker.get("sources", {}) if name.startswith(f"{table_kind}@")]
            if made_from:
                told[flag] = made_from[0].partition("@")[2]
            elif flag == "segments" and issubclass(kind, settings.TrainingConfig):
                told[flag] = "none"
    try:
        return kind(**told)
    except ValidationError as error:
        raise ConfigError(f"{archive / table} was made with settings of another version: {error}") from None


def stage_of(archive: Place, table: str) -> Stage:
    """The stage that made a table, built anew from the same settings.

    Raises:
        ConfigError: there is no such table, it does not say what made it, or what made it is gone.
    """
    config = config_of(archive, table)
    for stage in STAGES[type(config)](config, archive):
        if stage.output == table:
            return stage
    raise ConfigError(f"{archive / table}: its settings no longer lead to this table; remove it and make it again")
