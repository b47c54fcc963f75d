"""Plain open_clip models: by name with a tag or a weight file, or from a folder such as open_clip writes; and back."""

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from urbancross import storage
from urbancross.errors import CheckpointError, ConfigError
from urbancross.models.lazy import open_clip, torch

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # where a model tells no others
CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
FOLDER = "local-dir:"  # open_clip's own word for a folder


def is_known(base: str) -> bool:
    """Whether open_clip can make the model: `ARCHITECTURE/TAG`, `ARCHITECTURE/FILE` or `local-dir:FOLDER`."""
    if base.startswith(FOLDER):
        return True
    if weight_file(base) is not None and _shipped_config(base) is not None:
        return True
    architecture, _, tag = base.partition("/")
    if (architecture, tag) in open_clip.list_pretrained():
        return True
    return architecture in open_clip.list_models() and Path(tag).is_file()


def weight_file(base: str) -> Path | None:
    """The file of a model's weights, where its name or its folder leads to one; tags of the hub have no ending."""
    if base.startswith(FOLDER):
        file = Path(base.removeprefix(FOLDER)).expanduser() / WEIGHTS
    else:
        file = Path(base.partition("/")[2])
    return file if file.suffix and file.is_file() else None


def _shipped_config(base: str) -> dict[str, Any] | None:
    """Of an architecture, as open_clip's package holds it: read without importing open_clip."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "model_configs" / f"{base.partition('/')[0]}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def absolute(base: str) -> str:
    """The same model from any working directory."""
    if base.startswith(FOLDER):
        return f"{FOLDER}{Path(base.removeprefix(FOLDER)).expanduser().absolute()}"
    architecture, _, tag = base.partition("/")
    return f"{architecture}/{Path(tag).absolute()}" if Path(tag).is_file() else base


def short_name(base: str) -> str:
    """What tables that the model makes are called."""
    if base.startswith(FOLDER):
        return Path(base.removeprefix(FOLDER)).name
    architecture, _, tag = base.partition("/")
    return f"{architecture}-{Path(tag).stem}" if Path(tag).is_absolute() else base.replace("/", "-")


def fingerprint(base: str) -> str:
    """Digest of the files behind a model; a tag of the hub stands for itself.

    Raises:
        ConfigError: a folder without the files.
    """
    if base.startswith(FOLDER):
        folder = Path(base.removeprefix(FOLDER)).expanduser()
        weights = sorted([*folder.glob("open_clip_*.safetensors"), *folder.glob("open_clip_*.bin")])
        if not (folder / CONFIG).is_file() or not weights:
            raise ConfigError(f"--model {base}: no {CONFIG} with weights beside it there, such as open_clip writes")
        return storage.digest(folder / CONFIG, *weights)
    tag = Path(base.partition("/")[2])
    return storage.digest(tag) if tag.is_file() else f"open_clip:{base}"


def settings(base: str) -> dict[str, Any]:
    """`model_cfg` and `preprocess_cfg` of a model, without its weights.

    Raises:
        CheckpointError: the folder's config cannot be read.
    """
    if base.startswith(FOLDER):
        return read(Path(base.removeprefix(FOLDER)).expanduser())
    if weight_file(base) is not None and (shipped := _shipped_config(base)) is not None:
        return {"model_cfg": shipped, "preprocess_cfg": {}}
    architecture, _, tag = base.partition("/")
    given = open_clip.get_pretrained_cfg(architecture, tag)  # what the tag's weights were trained with
    model = dict(open_clip.get_model_config(architecture))
    if given.get("quick_gelu"):
        model["quick_gelu"] = True
    kept = {name: given[name] for name in ("mean", "std", "interpolation", "resize_mode") if name in given}
    return {"model_cfg": model, "preprocess_cfg": kept}


def read(folder: Path) -> dict[str, Any]:
    """The settings in a folder such as open_clip writes."""
    found = storage.read_json(folder / CONFIG, "open_clip")
    if "model_cfg" not in found:
        raise CheckpointError(f"{folder / CONFIG} lacks model_cfg; was it written by another program?")
    return {"model_cfg": found["model_cfg"], "preprocess_cfg": found.get("preprocess_cfg", {})}


def build(base: str, told: dict[str, Any], weights: bool) -> Any:
    """The model, with its weights or with random ones.

    Raises:
        CheckpointError: the weights cannot be fetched or read.
    """
    architecture, _, tag = base.partition("/")
    try:
        if weights and base.startswith(FOLDER):
            return open_clip.create_model(base)
        if weights:
            return open_clip.create_model(
                architecture,
                pretrained=tag,
                force_quick_gelu=told["model_cfg"].get("quick_gelu", False),
                force_preprocess_cfg=told["preprocess_cfg"],
            )
        with _config_folder(told) as folder:
            return open_clip.create_model(f"{FOLDER}{folder}", load_weights=False)
    except Exception as error:  # whatever the hub client or torch raises: no network, no such file, other shapes, ...
        raise CheckpointError(f"cannot load the weights of {base}: {str(error).splitlines()[0]}") from error


def tokenizer(told: dict[str, Any]) -> Any:
    """What turns texts into tokens for a model of such settings."""
    with _config_folder(told) as folder:
        return open_clip.get_tokenizer(f"{FOLDER}{folder}")


@contextmanager
def _config_folder(told: dict[str, Any]) -> Iterator[str]:
    """open_clip takes settings that it does not know by name from a folder alone."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(told))
        yield folder


def side(told: dict[str, Any]) -> int:
    """Side of the square that the image tower takes, in px."""
    size = told["model_cfg"]["vision_cfg"].get("image_size", 224)
    return size if isinstance(size, int) else size[0]


def write(folder: Path, told: dict[str, Any], towers: Any, heads: Any) -> bool:
    """Write a model that plain open_clip loads: `open_clip.create_model("local-dir:FOLDER")`.

    The heads are linear maps, so that each goes into the last matrix of its tower.

    Returns:
        Whether it could be: a head that takes a centre off is no linear map, and some towers end in no matrix.
    """
    from safetensors.torch import save

    storage.write_json(folder / CONFIG, told)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in towers.state_dict().items()}
    for kind, names in (("image", ("visual.proj",)), ("text", ("text_projection", "text.text_projection"))):
        matrices = (name for name in names if isinstance(state.get(name), torch.Tensor) and state[name].ndim == 2)
        last = next(matrices, None)
        head = {name: tensor.cpu() for name, tensor in heads[kind].state_dict().items()}
        if last is None or bool(head["centre"].any()):
            return False
        state[last] = (state[last] @ head["project.weight"].T).contiguous()
    (folder / WEIGHTS).write_bytes(save(state))
    return True
