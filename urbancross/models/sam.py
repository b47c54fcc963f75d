"""A SAM from a checkpoint file: which one it is, its shapes tell; and the file itself, by path or URL."""

import hashlib
import logging
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn

from urbancross import storage
from urbancross.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

OFFICIAL = {(768, 12, 12): "vit_b", (1024, 24, 16): "vit_l", (1280, 32, 16): "vit_h"}
LARGEST_PX = 4096  # of the model's input; its global blocks take memory with the fourth power
DECODER_HEADS = 8  # of every SAM; the one number that no shape tells
TABLES = tuple(f"attn.rel_pos_{axis}" for axis in "hw")
GIVE = "give a SAM checkpoint (.pth or .safetensors), such as sam_vit_b_01ec64.pth"


@dataclass(frozen=True)
class Shape:
    """The architecture of a SAM, as its weights tell it; names as `segment_anything` has them."""

    embed_dim: int
    depth: int
    heads: int
    img_size: int
    patch_size: int
    window_size: int
    global_blocks: tuple[int, ...]
    mlp_ratio: float
    qkv_bias: bool
    prompt_dim: int
    mask_in_chans: int
    multimask_outputs: int
    decoder_depth: int
    decoder_mlp_dim: int
    decoder_downsample: int
    iou_depth: int
    iou_hidden: int


def shape_of(state: Mapping[str, Tensor]) -> Shape:
    """Read the architecture off a state dict.

    Raises:
        CheckpointError: these are not the weights of a SAM.
    """
    try:
        encoder, decoder = "image_encoder.", "mask_decoder."
        embed_dim, _, patch_size, _ = state[f"{encoder}patch_embed.proj.weight"].shape
        side = state[f"{encoder}pos_embed"].shape[1]
        depth, decoder_depth = _count(state, f"{encoder}blocks."), _count(state, f"{decoder}transformer.layers.")
        reach = [state[f"{encoder}blocks.{i}.attn.rel_pos_h"].shape[0] // 2 + 1 for i in range(depth)]
        windows = {tokens for tokens in reach if tokens != side}
        if len(windows) > 1:
            raise CheckpointError(f"a SAM with windows of {sorted(windows)} tokens, one size wanted; {GIVE}")
        prompt_dim = state[f"{decoder}iou_token.weight"].shape[1]
        narrowed = state[f"{decoder}transformer.layers.0.cross_attn_token_to_image.q_proj.weight"].shape[0]
        return Shape(
            embed_dim=embed_dim,
            depth=depth,
            heads=embed_dim // state[f"{encoder}blocks.0.attn.rel_pos_h"].shape[1],
            img_size=side * patch_size,
            patch_size=patch_size,
            window_size=windows.pop() if windows else 0,
            global_blocks=tuple(i for i, tokens in enumerate(reach) if tokens == side),
            mlp_ratio=state[f"{encoder}blocks.0.mlp.lin1.weight"].shape[0] / embed_dim,
            qkv_bias=f"{encoder}blocks.0.attn.qkv.bias" in state,
            prompt_dim=prompt_dim,
            mask_in_chans=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
            multimask_outputs=state[f"{decoder}mask_tokens.weight"].shape[0] - 1,
            decoder_depth=decoder_depth,
            decoder_mlp_dim=state[f"{decoder}transformer.layers.0.mlp.lin1.weight"].shape[0],
            decoder_downsample=prompt_dim // narrowed,
            iou_depth=_count(state, f"{decoder}iou_prediction_head.layers."),
            iou_hidden=state[f"{decoder}iou_prediction_head.layers.0.weight"].shape[0],
        )
    except KeyError as error:
        raise CheckpointError(f"no SAM: {error} is missing among {len(state)} tensors; {GIVE}") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"no SAM: its tensors have other shapes ({error}); {GIVE}") from None


def build(shape: Shape) -> Sam:
    """A SAM of this shape with weights that mean nothing yet."""
    tokens = shape.img_size // shape.patch_size
    sam = Sam(
        image_encoder=ImageEncoderViT(
            depth=shape.depth,
            embed_dim=shape.embed_dim,
            img_size=shape.img_size,
            mlp_ratio=shape.mlp_ratio,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            num_heads=shape.heads,
            patch_size=shape.patch_size,
            qkv_bias=shape.qkv_bias,
            use_rel_pos=True,
            global_attn_indexes=shape.global_blocks,
            window_size=shape.window_size,
            out_chans=shape.prompt_dim,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=shape.prompt_dim,
            image_embedding_size=(tokens, tokens),
            input_image_size=(shape.img_size, shape.img_size),
            mask_in_chans=shape.mask_in_chans,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=shape.multimask_outputs,
            transformer=TwoWayTransformer(
                depth=shape.decoder_depth,
                embedding_dim=shape.prompt_dim,
                mlp_dim=shape.decoder_mlp_dim,
                num_heads=DECODER_HEADS,
                attention_downsample_rate=shape.decoder_downsample,
            ),
            transformer_dim=shape.prompt_dim,
            iou_head_depth=shape.iou_depth,
            iou_head_hidden_dim=shape.iou_hidden,
        ),
    )
    return sam.eval().requires_grad_(False)


def load(path: Path, input_px: int | None = None) -> Sam:
    """The model of a checkpoint file; with `input_px`, for inputs of that side instead of its own."""
    state = read(path)
    try:
        shape = shape_of(state)
        if broken := [name for name, weights in state.items() if not torch.isfinite(weights).all()]:
            raise CheckpointError(f"{broken[0]} holds numbers that are not finite; {GIVE}")
        if input_px is not None:
            state = resized(state, shape, input_px)
            shape = replace(shape, img_size=input_px)
        with torch.device("meta"):  # no weights are drawn that the file's replace
            sam = build(shape)
        sam.load_state_dict(state, assign=True)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except RuntimeError as error:
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit the SAM that its shapes tell of: {told}; {GIVE}") from None
    # The two buffers that no checkpoint holds.
    sam.pixel_mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
    sam.pixel_std = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
    return sam.float().requires_grad_(False)


def resized(state: Mapping[str, Tensor], shape: Shape, input_px: int) -> dict[str, Tensor]:
    """The same weights for another input side: positions and the global blocks' distances interpolated."""
    if input_px < shape.patch_size or input_px % shape.patch_size:
        raise ConfigError(f"--input-px {input_px}: a multiple of {shape.patch_size} is wanted, the side of a patch")
    tokens = input_px // shape.patch_size
    if input_px > LARGEST_PX:
        raise ConfigError(f"--input-px {input_px}: at most {LARGEST_PX} is wanted")
    state = dict(state)
    place = state["image_encoder.pos_embed"].float().permute(0, 3, 1, 2)
    place = F.interpolate(place, (tokens, tokens), mode="bicubic", antialias=True)
    state["image_encoder.pos_embed"] = place.permute(0, 2, 3, 1).contiguous()
    for block in shape.global_blocks:
        for table in TABLES:
            name = f"image_encoder.blocks.{block}.{table}"
            distances = state[name].float().T[None]  # [1, D, 2 * side - 1]
            state[name] = F.interpolate(distances, 2 * tokens - 1, mode="linear")[0].T.contiguous()
    return state


def variant_of(shape: Shape) -> str:
    """`sam-vit_b`, `sam-vit_l` or `sam-vit_h`; `sam-<width>x<depth>` for others."""
    size = (shape.embed_dim, shape.depth, shape.heads)
    return f"sam-{OFFICIAL.get(size, f'{shape.embed_dim}x{shape.depth}')}"


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .safetensors file; nothing in it can run code."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist; {GIVE}") from None
    except Exception as error:  # what torch and pickle make of a file that is something else, KeyError among it
        log.info("%s: %s", path, error)
        raise CheckpointError(f"{path} is no checkpoint or is cut short; {GIVE}") from None
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # as training scripts wrap it
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path} holds no dictionary of tensors; {GIVE}")
    return {name.removeprefix("module."): weights for name, weights in state.items()}  # as DataParallel wraps it


def weights(checkpoint: str, sha256: str | None = None) -> Path:
    """The checkpoint's file: the path itself, or what the URL leads to, downloaded once.

    Args:
        checkpoint: a path, or an http(s) URL.
        sha256: of the file, whole or its first 8 digits or more. Without it a URL must end as the official ones do,
            in the first digits (`sam_vit_h_4b8939.pth`).

    Raises:
        ConfigError: the digest is missing or is none.
        CheckpointError: the file is missing, cannot be fetched or is another.
    """
    if sha256 is not None and not re.fullmatch("[0-9a-f]{8,64}", sha256 := sha256.lower()):
        raise ConfigError(f"--sha256 {sha256}: 8 to 64 hexadecimal digits are wanted")
    if not re.match("https?://", checkpoint, re.IGNORECASE):
        if "://" in checkpoint:
            raise ConfigError(f"--checkpoint {checkpoint.partition('://')[0]}://...: give a path or an http(s) URL")
        path = Path(checkpoint).expanduser()
        if path.is_dir():
            raise CheckpointError(f"{checkpoint} is a folder; {GIVE}, by path or URL")
        if not path.is_file():
            raise CheckpointError(f"{checkpoint} does not exist; {GIVE}, by path or URL")
        if sha256 and not (found := _sha256(path)).startswith(sha256):
            raise CheckpointError(
                f"{checkpoint} has SHA-256 {found}, not {sha256}; download it again, or mend --sha256"
            )
        return path
    try:
        address = urlsplit(checkpoint)
        port = f":{address.port}" if address.port else ""
        shown = f"{address.scheme}://{address.hostname or ''}{port}{address.path}"  # no signature, no password
        secret = address.username is not None or address.password is not None
    except ValueError:
        raise ConfigError("--checkpoint is no URL; give a path or an http(s) URL") from None
    if secret:
        raise ConfigError(f"{shown} came with a password, which would end in logs; download it and give the path")
    name = Path(unquote(address.path)).name
    ending = re.search(r"[-_]([0-9a-f]{6,64})\.\w+$", name)
    wanted = sha256 or (ending and ending[1])
    if not wanted:
        raise ConfigError(f"{shown} does not say which file it is; pass --sha256 with the file's SHA-256")
    cache = storage.cache()
    path = cache / f"{wanted[:8]}-{name}"
    if path.is_file():
        if _sha256(path).startswith(wanted):
            return path
        path.unlink(missing_ok=True)  # spoiled since
    try:
        cache.mkdir(parents=True, exist_ok=True)
        # Into a file of its own, renamed when the digest is right.
        torch.hub.download_url_to_file(checkpoint, str(path), hash_prefix=wanted, progress=False)
    except RuntimeError:
        raise CheckpointError(f"{shown} gave a file whose SHA-256 does not begin with {wanted}; check both") from None
    except HTTPError as error:
        raise CheckpointError(f"{shown} cannot be fetched: HTTP {error.code}; check the URL") from None
    except (OSError, HTTPException, ValueError) as error:
        why = getattr(error, "strerror", None) or getattr(error, "reason", None) or type(error).__name__
        raise CheckpointError(f"{shown} cannot be fetched ({why}); try again or give a path") from None
    return path


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered layers there are below a name."""
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})
