"""A model by name or from a checkpoint folder, and the folder itself: `checkpoint.json` beside `model.safetensors`."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes

from urbancross import storage
from urbancross.errors import CheckpointError, ConfigError
from urbancross.models import plain, starter
from urbancross.models.dual_encoder import DualEncoder, Head, IdentityHead
from urbancross.models.lazy import open_clip
from urbancross.models.query_bank import EXTRA, QueryBank
from urbancross.storage import Place
from urbancross.stores.s3 import S3Path

WEIGHTS, DESCRIPTION, EVENTS = "model.safetensors", "checkpoint.json", "events.jsonl"


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
        with safe_open(weights, "pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise _cannot_be_loaded(weights, error) from error


def _cannot_be_loaded(weights: Path, error: Exception) -> CheckpointError:
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
    return int(_plain_settings(model)["model_cfg"]["embed_dim"])


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
    return plain.side(_plain_settings(model))


def _plain_settings(model: Model) -> dict[str, Any]:
    """Of an open_clip model: as its checkpoint keeps them, for where that began may be gone."""
    folder = files_of(model)
    if folder is not None and (folder / plain.CONFIG).is_file():
        return plain.read(folder)
    return plain.settings(model.base)


def load(model: Model, device: str = "cpu", dropout: float = 0.0, seed: int = 0) -> DualEncoder:
    """Build the encoder, in eval mode, with the weights of its checkpoint or its base model.

    Args:
        dropout: of the heads, for training.
        seed: of heads that no checkpoint fills.

    Raises:
        CheckpointError: the weights do not fit or are cut short.
        ConfigError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device in this process; give --device cpu, or --gpus-per-worker 1")
    encoder = _build(model, dropout, seed)
    if (folder := files_of(model)) is not None:
        try:
            if storage.read_json(folder / DESCRIPTION, "checkpoint").get("segment_tower"):
                encoder.keep_segment_tower()
            if model.bank:
                encoder.bank = QueryBank(*model.bank, encoder.width)
            # Older ones lack what a model does not learn by steps; it is as it always was.
            later = {name: kept for name, kept in encoder.state_dict().items() if name.endswith((".centre", "views"))}
            encoder.load_state_dict(later | load_file(folder / WEIGHTS))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise _cannot_be_loaded(folder / WEIGHTS, error) from error
    return encoder.to(torch.device(device)).eval()


def _build(model: Model, dropout: float, seed: int) -> DualEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.base == "starter":
            width = width_of(model)
            return DualEncoder(
                starter.towers(pretrained=model.folder is None),
                {
                    "image": Head(starter.IMAGE_WIDTH, width, dropout),
                    "text": Head(starter.TEXT_WIDTH, width, dropout),
                    "segment": Head(starter.IMAGE_WIDTH, width, dropout),
                },
                starter.Tokenizer(),
                image_px=starter.IMAGE_PX,
                mean=starter.IMAGE_MEAN,
                std=starter.IMAGE_STD,
                image_width=starter.IMAGE_WIDTH,
                text_width=starter.TEXT_WIDTH,
                width=width,
            )
        settings = _plain_settings(model)
        towers = plain.build(model.base, settings, weights=model.folder is None)
        told = open_clip.get_model_preprocess_cfg(towers)
        size = told["size"]
        width = width_of(model)
        return DualEncoder(
            towers,
            {kind: IdentityHead(width) for kind in ("image", "text", "segment")},
            plain.tokenizer(settings),
            image_px=size if isinstance(size, int) else size[0],
            mean=told["mean"],
            std=told["std"],
            image_width=width,
            text_width=width,
            width=width,
            plain=settings,
        )


def save(
    encoder: DualEncoder,
    folder: Path,
    base: str,
    towers: str | None,
    settings: dict[str, Any],
    made_from: dict[str, str],
) -> None:
    """Write the files of a checkpoint into `folder`, which exists and is empty.

    Args:
        towers: digest of the towers, where training left them as they were; None where it changed them.
        made_from: digests of what training began with.
    """
    if encoder.plain is not None:
        plain.write(folder, encoder.plain, encoder.towers, encoder.heads)
    bank = encoder.bank
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    (folder / WEIGHTS).write_bytes(to_bytes(state))  # `save_file` would make it readable for its owner alone
    storage.write_json(
        folder / DESCRIPTION,
        {
            "base": base,
            "width": encoder.width,
            "image_px": encoder.image_px,
            "mean": encoder.mean,
            "std": encoder.std,
            "fingerprint": (fingerprint := storage.digest(folder / WEIGHTS)),
            "towers": towers or fingerprint,
            "query_bank": bank and {"tiles": len(bank.tiles), "texts": len(bank.texts)},
            "segment_tower": encoder.segment_tower is not None,
            "settings": settings,
            "made_from": made_from,
        },
    )
