"""`caption`: tiles and their geo-tags to the table `captions@NAME`."""

import functools
import random
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from urbancross import schemas, storage, tables
from urbancross.captions import captioner, prompts, template
from urbancross.captions.captioner import Asking, ModelCaptioner, Tile
from urbancross.captions.told import TAG_COLUMNS, Telling, tags_to_tell, with_other_tags
from urbancross.captions.truth import judge
from urbancross.config import CaptionConfig
from urbancross.distributed.openai_engine import OpenAiEngine
from urbancross.distributed.stages import Stage
from urbancross.distributed.tables import run_stage
from urbancross.distributed.vllm_engine import VllmEngine
from urbancross.errors import ConfigError, TileError, TileSkipped
from urbancross.runs import Balance
from urbancross.storage import Place

ENGINES: dict[str, type[VllmEngine | OpenAiEngine]] = {"vllm": VllmEngine, "openai": OpenAiEngine}
SAMPLE_BYTES = 1 << 20


class TemplateCaptions:
    """Captions from a tile's geo-tags alone; the choice of words follows from the seed and the tile's id."""

    def __init__(self, seed: int, captions_per_tile: int, telling: dict[str, Any]) -> None:
        self.seed, self.count, self.telling = seed, captions_per_tile, Telling(**telling)
        self.writer = template.TemplateCaptioner()

    def __call__(self, sources: dict[str, pa.Table]) -> pa.Table:
        return pa.Table.from_pylist(
            schemas.each_tile(sources["geotags"].to_pylist(), self.write), schema=schemas.CAPTIONS
        )

    def write(self, row: dict[str, Any]) -> dict[str, Any]:
        told = tags_to_tell(row, self.telling, _seed_of(self.seed, row))
        texts = self.writer.captions(told.center, told.surrounding, _seed_of(self.seed, row), self.count)
        if not texts:
            raise TileSkipped("no geo-tags")
        return {
            "captions": texts,
            "engine": "template",
            "prompt_version": template.VERSION,
            "tags": told.tags,
            "tags_from": told.origin,
            "seed": self.seed,
            "verdict": asdict(judge(texts, row["center_tags"], row["surrounding_tags"])),
        }


class ModelCaptions:
    """Captions by a vision-language model, told the tile's geo-tags."""

    def __init__(
        self, engine: str, model: str, engine_options: dict[str, Any], asking: dict[str, Any], telling: dict[str, Any]
    ) -> None:
        self.engine = ENGINES[engine](**engine_options)
        self.captioner = ModelCaptioner(self.engine, engine, model, Asking(**asking))
        self.telling = Telling(**telling)

    def on_step(self, went_on: Callable[[], None]) -> None:
        self.engine.went_on = went_on

    def __call__(self, sources: dict[str, pa.Table]) -> pa.Table:
        rows = sources["tiles"].to_pylist()
        tags = sources["geotags"].to_pylist() if "geotags" in sources else [{} for _ in rows]
        known = [self.tile(row, told) for row, told in zip(rows, tags, strict=True) if row["failure"] is None]
        found = self.captioner.captions(known)

        def result(row: dict[str, Any]) -> dict[str, Any]:
            answer = found[row["tile_id"]]
            if isinstance(answer, TileError):
                raise answer
            return answer

        return pa.Table.from_pylist(schemas.each_tile(rows, result), schema=schemas.CAPTIONS)

    def tile(self, row: dict[str, Any], tags: dict[str, Any]) -> Tile:
        """A tile as the captioner wants it; one without geo-tags is told none."""
        told = tags_to_tell(tags, self.telling, _seed_of(self.captioner.asking.seed, row))
        facts = prompts.Facts(row["domain"], row["bounds"], row["datetime"], row["gsd_m"])
        center, surrounding = (tags.get(column) or () for column in TAG_COLUMNS)
        return Tile(row["tile_id"], row["image"], facts, center, surrounding, told)


def _seed_of(seed: int, row: dict[str, Any]) -> int:
    return random.Random(f"{seed}/{row['tile_id']}").getrandbits(31)


def stages(config: CaptionConfig, archive: Place) -> list[Stage]:
    """Raises:
    ConfigError: the model is told geo-tags, and the archive has none.
    """
    telling = Telling(**{key: getattr(config, key) for key in Telling.__dataclass_fields__})
    prepare = functools.partial(_prepare, seed=config.seed) if config.shuffle_tags else None
    table = f"captions@{config.name or name_of(config.model or config.engine)}"
    if config.engine == "template":
        if not config.tags:
            raise ConfigError("--engine template writes from geo-tags alone; leave --no-tags out or choose vllm")
        told = {"seed": config.seed, "captions_per_tile": config.captions_per_tile or 5, "telling": asdict(telling)}
        made_by = {**told, "engine": "template", "prompt_version": template.VERSION}
        return [
            Stage(table, {"geotags": None}, schemas.CAPTIONS, TemplateCaptions, told, made_by, 256, prepare=prepare)
        ]
    sources: dict[str, list[str] | None] = {"tiles": ["image", "domain", "bounds", "datetime", "gsd_m"]}
    mapped = bool(storage.shards(archive / "geotags"))
    if config.tags and not mapped:
        raise ConfigError(
            f"{archive} has no geotags to tell the model; make them with urbancross geotag --archive {archive} "
            "--osm X.osm.pbf, or pass --no-tags"
        )
    if mapped:  # also where the model is not told: captions are held against the map
        sources["geotags"] = None
    asked = {"seed", "attempts", "on_contradiction", "fallback"}
    asking = Asking(config.captions_per_tile or 1, **config.model_dump(include=asked))
    asked_for = config.model or ""
    model, digest = resolve(asked_for, config)
    arguments = {
        "engine": config.engine,
        "model": asked_for,
        "engine_options": {"model": model} | engine_options(config),
        "asking": asdict(asking),
        "telling": asdict(telling),
    }
    made_by = {
        "engine": config.engine,
        "model": digest,
        "sampling": config.model_dump(include={"temperature", "max_tokens", "max_chars"}),
        "asking": asdict(asking),
        "telling": asdict(telling),
        "prompt_version": prompts.VERSION,
    }
    if config.engine == "vllm":
        made_by["engine_args"] = config.engine_args
    return [
        Stage(
            table,
            sources,
            schemas.CAPTIONS,
            ModelCaptions,
            arguments,
            made_by,
            config.batch_tiles,
            notes={"model": config.model},
            prepare=prepare,
            tally=captioner.tally,
        )
    ]


def _prepare(sources: dict[str, pa.Table], seed: int) -> dict[str, pa.Table]:
    return {**sources, "geotags": with_other_tags(sources["geotags"], seed)}


def engine_options(config: CaptionConfig) -> dict[str, Any]:
    """What the engine of a config is built with, beside the model."""
    shared = {"temperature", "max_tokens", "max_chars"}
    if config.engine == "openai":
        return config.model_dump(include=shared | {"endpoint", "concurrency", "timeout_s", "retry_minutes"})
    own = {"tensor_parallel", "revision", "max_model_len", "max_num_seqs", "engine_args"}
    return config.model_dump(include=shared | own) | {
        "on_gpu": config.gpus_per_worker > 0 or spreads_over_nodes(config)
    }


def spreads_over_nodes(config: CaptionConfig) -> bool:
    """Whether vLLM itself asks Ray for a placement group with a bundle per GPU; else an actor holds its GPUs."""
    return config.engine_args.get("distributed_executor_backend") == "ray"


def name_of(model: str) -> str:
    """A model's name as the variant of a table: `Qwen/Qwen2.5-VL-7B-Instruct` -> `qwen2.5-vl-7b-instruct`."""
    return re.sub(r"[^a-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2].lower()).strip("-.") or "model"


def resolve(model: str, config: CaptionConfig) -> tuple[str, str]:
    """A model as its engine wants it, and what a table keeps of it: of a folder, a digest of its files.

    Of files above a few megabytes only the size and both ends are read: a folder of weights holds up to terabytes.

    Raises:
        ConfigError: a path to nowhere, or a folder without a model.
    """
    if config.engine == "openai":
        return model, model
    folder = Path(model).expanduser()
    if not folder.is_dir():
        if model.startswith((".", "/", "~")) or model.count("/") > 1:
            raise ConfigError(f"--model {model}: no such folder; give one with config.json, or a name from the hub")
        return model, f"{model}@{config.revision or 'main'}"
    if not (folder / "config.json").is_file():
        raise ConfigError(f"--model {model} has no config.json; give a model folder as Hugging Face lays it out")
    told = []
    for file in sorted(folder.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            size = file.stat().st_size
            with open(file, "rb") as opened:
                ends = opened.read() if size < 4 * SAMPLE_BYTES else opened.read(SAMPLE_BYTES)
                if size >= 4 * SAMPLE_BYTES:
                    opened.seek(-SAMPLE_BYTES, 2)
                    ends += opened.read()
            told.append(f"{file.name} {size} {storage.digest_bytes(ends)}")
    return str(folder.absolute()), storage.digest_text("\n".join(told))


def settled(config: CaptionConfig) -> CaptionConfig:
    """What a run asks of Ray, where that was not said."""
    if config.engine == "vllm" and "workers" not in config.model_fields_set:
        config = config.model_copy(update={"workers": 1})  # an engine fills a GPU, and a laptop
    if config.tensor_parallel > 1 and not config.gpus_per_worker and not spreads_over_nodes(config):
        config = config.model_copy(update={"gpus_per_worker": config.tensor_parallel})
    return config


def run(config: CaptionConfig) -> Balance:
    config = settled(config)
    archive = storage.archive(config.archive)
    tables.require_shards(archive, "geotags" if config.engine == "template" else "tiles")
    (stage,) = stages(config, archive)
    return run_stage(archive, stage, config)
