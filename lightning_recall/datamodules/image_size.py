"""Chooses the size of the images for the model that is trained or tested."""

from typing import Any

from lightning_recall._lightning import rank_zero_warn
from lightning_recall.data import ImageTransforms


def transforms_for(transforms: ImageTransforms, trainer: Any) -> ImageTransforms:
    """The transforms with numbers for `size` and `resize`, chosen for the module of the Trainer.

    Warns if the evaluation would see only the middle of an image.

    Args:
        transforms: the transforms that the data module was given.
        trainer: the Trainer of the data module; None: the size of the model is unknown.

    Raises:
        ValueError: if the model cannot take images of this size, as its `check_image_size` finds.
    """
    module = getattr(trainer, "lightning_module", None)
    resolved = transforms.for_model(getattr(module, "image_size", None))
    if resolved.sees_only_the_middle:
        assert resolved.size is not None
        whole = ImageTransforms(size=resolved.size).evaluation_sizes[1]
        rank_zero_warn(
            f"transforms.resize={resolved.resize} is far above transforms.size={resolved.size}: evaluation would see "
            f"only the middle of each image; omit resize, or set it near {whole}."
        )
    has_fixed_size = resolved.longest_side is None and resolved.eval_transform is None
    owner = module if hasattr(module, "check_image_size") else getattr(module, "embedder", None)
    check = getattr(owner, "check_image_size", None)
    if has_fixed_size and check is not None:
        check(resolved.size)
    return resolved
