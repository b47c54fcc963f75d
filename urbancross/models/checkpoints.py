"""Encoders by the names of their models, and checkpoint folders: `checkpoint.json` beside `model.safetensors`."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes

from urbancross import storage
from urbancross.errors import ConfigError
from urbancross.models import image_tower, plain, starter
from urbancross.models.dual_encoder import DualEncoder, Head, IdentityHead
from urbancross.models.lazy import open_clip
from urbancross.models.names import (
    DESCRIPTION,
    EVENTS,
    WEIGHTS,
    Model,
    cannot_be_loaded,
    feature_widths,
    files_of,
    image_px_of,
    plain_settings,
    resolve,
    vector_width,
    width_of,
)
from urbancross.models.query_bank import QueryBank

__all__ = [
    "DESCRIPTION",
    "EVENTS",
    "WEIGHTS",
    "Model",
    "feature_widths",
    "files_of",
    "image_px_of",
    "load",
    "resolve",
    "save",
    "vector_width",
    "width_of",
]


def load(model: Model, device: str = "cpu", dropout: float = 0.0, seed: int = 0, texts: bool = True) -> DualEncoder:
    """Build the encoder, in eval mode, with the weights of its checkpoint or its base model.

    Args:
        dropout: of the heads, for training.
        seed: of heads that no checkpoint fills.
        texts: whether it is to embed texts, and to learn; without, what only those need is left out if it can be.

    Raises:
        CheckpointError: the weights do not fit or are cut short.
        ConfigError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no CUDA device in this process; give --device cpu, or --gpus-per-worker 1")
    encoder = (None if texts else _build_without_texts(model, dropout)) or _build(model, dropout, seed)
    if (folder := files_of(model)) is not None:
        try:
            if storage.read_json(folder / DESCRIPTION, "checkpoint").get("segment_tower"):
                encoder.keep_segment_tower()
            if model.bank:
                encoder.bank = QueryBank(*model.bank, encoder.width)
            # Older ones lack what a model does not learn by steps; it is as it always was.
            later = {name: kept for name, kept in encoder.state_dict().items() if name.endswith((".centre", "views"))}
            encoder.load_state_dict(later | _read(folder / WEIGHTS, "text" in encoder.heads))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise cannot_be_loaded(folder / WEIGHTS, error) from error
    return encoder.to(torch.device(device)).eval()


def _read(file: Path, texts: bool) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint; without texts, those that say something of images."""
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if texts or not _is_of_texts(name)]  # noqa: SIM118
        return {name: tensors.get_tensor(name) for name in names}


def _is_of_texts(name: str) -> bool:
    return name.startswith(("towers.", "heads.text.")) and not name.startswith("towers.visual.")


def _build(model: Model, dropout: float, seed: int) -> DualEncoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if model.base == "starter":
            return _of_starter(model, starter.towers(pretrained=model.folder is None), dropout, starter.Tokenizer())
        settings = plain_settings(model)
        towers = plain.build(model.base, settings, weights=model.folder is None)
        told = open_clip.get_model_preprocess_cfg(towers)
        return _of_plain(model, settings, towers, told, plain.tokenizer(settings))


def _build_without_texts(model: Model, dropout: float) -> DualEncoder | None:
    """None: the image tower does not come alone. That of a bare starter does not, whose heads are drawn after both."""
    if model.base == "starter":
        if model.folder is None:
            return None
        return _of_starter(model, image_tower.ImagesOnly(starter.image_tower()), dropout, None)
    settings = plain_settings(model)
    if model.folder is None:
        tower = image_tower.of(model.base, settings)
    else:
        tower = image_tower.ImageTower(settings) if image_tower.is_one(settings) else None
    if tower is None:
        return None
    return _of_plain(model, settings, image_tower.ImagesOnly(tower), settings["preprocess_cfg"], None)


def _of_starter(model: Model, towers: Any, dropout: float, tokenizer: Any) -> DualEncoder:
    width = width_of(model)
    features = {"image": starter.IMAGE_WIDTH, "text": starter.TEXT_WIDTH, "segment": starter.IMAGE_WIDTH}
    return DualEncoder(
        towers,
        {kind: Head(features[kind], width, dropout) for kind in features if tokenizer or kind != "text"},
        tokenizer,
        image_px=starter.IMAGE_PX,
        mean=starter.IMAGE_MEAN,
        std=starter.IMAGE_STD,
        image_width=starter.IMAGE_WIDTH,
        text_width=starter.TEXT_WIDTH,
        width=width,
    )


def _of_plain(model: Model, settings: dict[str, Any], towers: Any, told: dict[str, Any], tokenizer: Any) -> DualEncoder:
    width = width_of(model)
    return DualEncoder(
        towers,
        {kind: IdentityHead(width) for kind in ("image", "text", "segment") if tokenizer or kind != "text"},
        tokenizer,
        image_px=plain.side(settings),
        mean=told.get("mean") or plain.MEAN,
        std=told.get("std") or plain.STD,
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
