"""What a model name or a checkpoint folder stands for, told without loading it, and without torch."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from urbancross import storage
from urbancross.errors import CheckpointError, ConfigError
from urbancross.models import plain, starter
from urbancross.models.lazy import open_clip
from urbancross.storage import Place
from urbancross.stores.s3 import S3Path

WEIGHTS, DESCRIPTION, EVENTS = "model.safetensors", "checkpoint.json", "events.jsonl"
EXTRA = 8  # coordinates of a vector that a query bank adds: four of use, zeros up to a multiple of eight


@dataclass(frozen=True)
class Model:
    """What a name or a folder stands for, told without loading it.

    Attributes:
        base: the model name under a checkpoint, or the name itself.
        width: of the embedding; None for an open_clip model, which has its own.
        folder: the checkpoint folder, here or on S3, or None for a bare model name.
        fingerprint: digest of the weights.
        towers: digest of the towers' weights alone; equal towers give equal features.
        bank: tiles and texts of its query bank, if it has one.
    """

    name: str
    base: str
    width: int | None
    folder: Place | None
    fingerprint: str
    towers: str
    bank: tuple[int, int] | None = None

    @property
    def place(self) -> str:
        """What another process resolves to the same model."""
        return str(self.folder or self.name)

    @property
    def variant(self) -> str:
        """How tables that the model makes are called where nobody says otherwise."""
        return self.folder.name if self.folder else plain.short_name(self.base)


def resolve(name: str, width: int | None = None) -> Model:
    """Find out what `--checkpoint` or `--model` names.

    Raises:
        ConfigError: neither a checkpoint folder nor a known model name.
        CheckpointError: a folder that is no whole checkpoint; on S3 its weights are not looked at yet.
    """
    on_s3 = name.lower().startswith("s3://")
    folder = storage.place(name) if on_s3 else Path(name).expanduser().absolute()
    if isinstance(folder, S3Path) or folder.is_dir():
        missing = [file for file in (DESCRIPTION, WEIGHTS) if not storage.exists(folder / file)]
        if missing:
            raise CheckpointError(
                f"{name} is no checkpoint: {', '.join(missing)} missing; give a folder that "
                "`urbancross pretrain --out` wrote, or a model name such as starter"
            )
        told = storage.read_json(folder / DESCRIPTION, "checkpoint")
        try:
            of = (told["base"], told["width"], folder, told["fingerprint"], told["towers"])
            bank = told.get("query_bank")  # older ones have none
            found = Model(name, *of, bank if bank is None else (bank["tiles"], bank["texts"]))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / DESCRIPTION} lacks {error}; was it written by another program?") from None
        if isinstance(folder, Path):
            _require_whole(folder / WEIGHTS)
        return found
    if name == "starter":
        image, text = starter.weight_files()
        fingerprint = storage.digest(image, text / "model.safetensors")
        return Model(name, name, width, None, fingerprint, fingerprint)
    if plain.is_known(name):
        base = plain.absolute(name)
        return Model(base, base, None, None, digest := plain.fingerprint(base), digest)
    known = ["starter", *("/".join(pair) for pair in open_clip.list_pretrained())]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or ["starter", "ViT-B-32/openai"]
    raise ConfigError(
        f"--checkpoint or --model {name}: neither a checkpoint folder nor a model; try {', '.join(close)}"
    )


def _require_whole(weights: Path) -> None:
    """By their header alone, which says how long the file is."""
    try:
        with safe_open(weights, "np"):
            pass
    except (SafetensorError, OSError) as error:
        raise cannot_be_loaded(weights, error) from error


def cannot_be_loaded(weights: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{weights} cannot be loaded ({str(error).splitlines()[0]}); copy it again")


def files_of(model: Model) -> Path | None:
    """The checkpoint folder on this machine; one on S3 is fetched once. None for a bare model name.

    Raises:
        CheckpointError: what was fetched is not what the checkpoint says it is.
    """
    if not isinstance(model.folder, S3Path):
        return model.folder
    kept = storage.cache() / "checkpoints" / f"{model.folder.name}-{model.fingerprint}"
    if not kept.is_dir():
        try:
            storage.fetch_folder(model.folder, kept)
        except ConfigError:
            if not kept.is_dir():  # another process may have been first
                raise
    if storage.digest(kept / WEIGHTS) != model.fingerprint:
        storage.remove_folder(kept)
        raise CheckpointError(f"{model.folder / WEIGHTS} is not of its {DESCRIPTION}; copy the checkpoint again")
    return kept


def width_of(model: Model) -> int:
    """D, without loading the weights."""
    if model.base == "starter":
        return model.width or starter.TEXT_WIDTH
    return int(plain_settings(model)["model_cfg"]["embed_dim"])


def vector_width(model: Model) -> int:
    """Of the vectors that the model says of tiles and texts, without loading the weights."""
    return width_of(model) + (EXTRA if model.bank else 0)


def feature_widths(model: Model) -> tuple[int, int]:
    """F of the image tower and of the text tower, without loading the weights."""
    return (starter.IMAGE_WIDTH, starter.TEXT_WIDTH) if model.base == "starter" else (width_of(model),) * 2


def image_px_of(model: Model) -> int:
    """Side of the square that the image tower takes, without loading the weights."""
    if model.base == "starter":
        return starter.IMAGE_PX
    return plain.side(plain_settings(model))


def plain_settings(model: Model) -> dict[str, Any]:
    """Of an open_clip model: as its checkpoint keeps them, for where that began may be gone."""
    folder = files_of(model)
    if folder is not None and (folder / plain.CONFIG).is_file():
        return plain.read(folder)
    return plain.settings(model.base)
