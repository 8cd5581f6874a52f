"""Low-rank adaptation (LoRA): trains small matrices beside the frozen layers of a backbone."""

import copy
import difflib
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_recall.checks import check_above_zero, check_integer
from lightning_recall.constructor_arguments import record_arguments
from lightning_recall.models.backbones import REJECTIONS, meta_forward

DEFAULT_SIZE = 224  # pixels, for backbones whose image size is unknown


@record_arguments
class LoRAEmbedder(nn.Module):
    """Adds a low-rank matrix to the weights of each chosen layer of an embedder's backbone, with peft.

    A layer with weight W computes (W + alpha / rank B A) x, where A has `rank` rows and B, initially 0, `rank` columns.
    The backbone's own parameters are frozen. A, B and the parameters outside the backbone are trained. Needs
    `pip install -e ".[lora]"`.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv 2106.09685).

    Args:
        embedder: an embedder with a `backbone`, such as `ImageEmbedder`; it is changed in place.
        rank: rank of the added matrices, at least 1.
        alpha: scale of the added matrices, above 0; they are multiplied by alpha / rank.
        dropout: dropout of the input of A during training, in [0, 1).
        target_modules: names of the linear and convolution layers to adapt, or the ends of their names, such as
            ["qkv", "fc1"]. None: all of them. Grouped and dilated convolutions, convolutions with their own padding or
            weight standardisation, and layers whose weight is used without calling the layer cannot be adapted.

    Shapes: those of `embedder`.

    Raises:
        ImportError: if peft is not installed.
        ValueError: for settings out of range, an embedder without backbone, and `target_modules` that do not name
            layers which can be adapted.

    >>> import torch
    >>> from lightning_recall.models import ImageEmbedder
    >>> embedder = LoRAEmbedder(ImageEmbedder("test_vit", 8, pretrained=False), rank=4, target_modules=["qkv"])
    >>> sum(p.numel() for p in embedder.backbone.parameters() if p.requires_grad)
    6144
    >>> embedder.merged()(torch.zeros(2, 3, 160, 160)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        embedder: nn.Module,
        rank: int = 8,
        alpha: float = 16,
        dropout: float = 0.0,
        target_modules: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_integer("rank", rank, 1)
        check_above_zero(alpha=alpha)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}.")
        backbone = getattr(embedder, "backbone", None)
        if not isinstance(backbone, nn.Module):
            raise ValueError(
                f"{type(embedder).__name__} has no backbone to adapt: use ImageEmbedder, or set .backbone."
            )
        peft = import_peft()
        names = chosen_layers(embedder, target_modules)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules="|".join(re.escape(name) for name in names),  # a regular expression: exactly these names
        )
        self.embedder = embedder
        peft.inject_adapter_in_model(config, backbone)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(is_lora(name))
        self.train(embedder.training)

    @property
    def backbone(self) -> nn.Module:
        """The embedder's backbone with the added matrices."""
        return self.embedder.backbone  # type: ignore[return-value]  # checked in __init__

    @property
    def head(self) -> nn.Module:
        """The embedder's head."""
        return self.embedder.head  # type: ignore[return-value]  # nn.Module attributes are typed Tensor or Module

    @property
    def num_features(self) -> int:
        """Number of the embedder's features."""
        return self.embedder.num_features  # type: ignore[return-value]  # see head

    @property
    def image_size(self) -> int | None:
        """Height and width that the backbone expects, or None."""
        return getattr(self.embedder, "image_size", None)

    @property
    def freeze_batch_norm(self) -> bool:
        """Whether the backbone's BatchNorm statistics stay unchanged in train mode."""
        return self.embedder.freeze_batch_norm  # type: ignore[return-value]  # see head

    @freeze_batch_norm.setter
    def freeze_batch_norm(self, frozen: bool) -> None:
        self.embedder.freeze_batch_norm = frozen  # type: ignore[assignment]  # see head

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of images or features, as the embedder computes them."""
        embeddings: Tensor = self.embedder(images)
        return embeddings

    def features(self, images: Tensor) -> Tensor:
        """Pooled features (B, num_features) of images (B, C, H, W)."""
        features: Tensor = self.embedder.features(images)  # type: ignore[operator]  # a method
        return features

    def check_image_size(self, size: int | tuple[int, int]) -> None:
        """Raises ValueError if the backbone does not accept images of this size."""
        self.embedder.check_image_size(size)  # type: ignore[operator]  # a method

    def merged(self) -> nn.Module:
        """A copy of the embedder whose weights contain the added matrices: a plain embedder without peft."""
        embedder: Any = copy.deepcopy(self.embedder)
        for name, layer in list(embedder.backbone.named_modules()):
            if hasattr(layer, "lora_A"):
                layer.merge()
                embedder.backbone.set_submodule(name, layer.get_base_layer())
        for parameter in embedder.parameters():
            parameter.requires_grad_(True)
        return embedder  # type: ignore[no-any-return]  # the type of self.embedder


def import_peft() -> Any:
    """The package peft, an optional extra."""
    try:
        import peft
    except ImportError as error:
        raise ImportError('LoRAEmbedder needs peft: pip install -e ".[lora]"') from error
    return peft


def is_lora(name: str) -> bool:
    """Whether a parameter of a backbone is one of the added matrices."""
    return ".lora_A." in name or ".lora_B." in name


def chosen_layers(embedder: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Names of the layers to adapt within the backbone.

    Raises:
        ValueError: if there are none, and for a target that names no layer, or a layer that cannot be adapted.
    """
    backbone: Any = embedder.backbone
    named = {name: module for name, module in backbone.named_modules() if name}
    if any(hasattr(module, "lora_A") for module in named.values()):
        raise ValueError("The backbone has LoRA matrices already: wrap an embedder only once.")
    adaptable = [name for name, module in named.items() if can_be_adapted(module)]
    called = called_layers(embedder, adaptable)
    if targets is None:
        if not called:
            raise ValueError(f"{type(backbone).__name__} has no linear or convolution layers that LoRA can adapt.")
        return called
    chosen: set[str] = set()
    for target in [targets] if isinstance(targets, str) else targets:
        matching = [name for name in named if f".{name}".endswith(f".{target}")]
        if not matching:
            raise ValueError(
                f"target_modules: {type(backbone).__name__} has no layer named {target!r}. Similar: "
                f"{', '.join(similar_names(target, called))}."
            )
        unsuitable = [name for name in matching if name not in called]
        if unsuitable:
            raise ValueError(
                f"target_modules: LoRA cannot adapt {unsuitable[0]} ({type(named[unsuitable[0]]).__name__}) of "
                f"{type(backbone).__name__}: name linear layers, or convolutions without groups and dilation."
            )
        chosen.update(matching)
    if not chosen:
        raise ValueError("target_modules must be null, or a list of one or more names, got [].")
    return [name for name in called if name in chosen]


def similar_names(target: str, names: list[str]) -> list[str]:
    """At most five names, or last parts of names, that resemble the target."""
    parts = [".".join(name.split(".")[-depth:]) for name in names for depth in (1, 2, name.count(".") + 1)]
    return (
        difflib.get_close_matches(target, sorted(set(parts)), 5, 0.4)
        or sorted({part for part in parts if "." not in part})[:5]
    )


def can_be_adapted(module: nn.Module) -> bool:
    """Whether peft adapts a layer such that merging is exact; subclasses may use their weight differently."""
    if type(module) is nn.Linear:
        return True
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and set(module.dilation) == {1}
        and module.padding_mode == "zeros"
    )


def called_layers(embedder: nn.Module, names: list[str]) -> list[str]:
    """Those layers of the backbone whose forward is called; all of them if this cannot be found out.

    Some models, such as BEiT, use the weight of a linear layer without calling the layer: LoRA would have no effect.
    """
    backbone: Any = embedder.backbone
    called: set[str] = set()
    hooks = [
        backbone.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: called.add(name)) for name in names
    ]
    size = getattr(embedder, "image_size", None) or DEFAULT_SIZE
    channels = getattr(embedder, "in_channels", None) or getattr(backbone, "in_channels", None) or 3
    try:
        meta_forward(backbone, (2, channels, size, size))
    except REJECTIONS:  # the backbone does not run on the meta device
        return names
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name in names if name in called]
