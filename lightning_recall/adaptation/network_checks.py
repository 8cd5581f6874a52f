"""Checks that the networks of a module fit each other and the images."""

from typing import Any

from torch import Tensor, nn

from lightning_recall.batch import type_and_shape

BATCH_NORM = nn.modules.batchnorm._BatchNorm  # torch has no public name for all kinds of BatchNorm


def check_batch_size(images: Tensor, domain: str, *networks: nn.Module) -> None:
    """Raises ValueError for a batch of one image, if BatchNorm would normalise it by its own statistics.

    Args:
        images: (B, 3, H, W) of one process.
        domain: "source" or "target".
        networks: all networks that are trained on these images.
    """
    layers = [layer for network in networks for layer in network.modules()] if len(images) == 1 else []
    if any(isinstance(layer, BATCH_NORM) and layer.training for layer in layers):
        raise ValueError(
            f"The batch has one {domain} image on this process, but BatchNorm cannot be trained on a single image: set "
            "batch_size to at least 2 for each process, and drop the last batch if it is smaller (drop_last=True)."
        )


def check_class_logits(logits: Any, num_images: int, num_classes: int, network: str) -> None:
    """Raises ValueError unless logits have the shape (B, K).

    Args:
        logits: output of a network.
        num_images: B.
        num_classes: K.
        network: name of the network in the message.
    """
    if not isinstance(logits, Tensor) or logits.shape != (num_images, num_classes):
        raise ValueError(
            f"The {network} must return logits of shape ({num_images}, {num_classes}) for {num_images} images and "
            f"num_classes={num_classes}, got {type_and_shape(logits)}: give num_classes to the module and the "
            f"{network} alike."
        )


def check_domain_logits(logits: Any, num_images: int, network: str = "discriminator") -> None:
    """Raises ValueError unless a discriminator returns one domain logit per image, shape (B,)."""
    if not isinstance(logits, Tensor) or logits.shape != (num_images,):
        column = isinstance(logits, Tensor) and logits.shape == (num_images, 1)
        advice = ": remove the last dimension with .squeeze(1)" if column else ""
        raise ValueError(
            f"The {network} must return one domain logit per image, shape ({num_images},), got "
            f"{type_and_shape(logits)}{advice}."
        )


def check_generated(generated: Any, images: Tensor) -> None:
    """Raises ValueError unless generated images have the shape of the images that they imitate."""
    if not isinstance(generated, Tensor) or generated.shape != images.shape:
        raise ValueError(
            f"The generator must return images of the shape of the batch, {tuple(images.shape)}, got "
            f"{type_and_shape(generated)}: resize the images of the data module, or use another generator."
        )


def check_input_dim(generator: nn.Module, feature_dim: Any, num_classes: int, noise_dim: int) -> None:
    """Raises ValueError if a generator's `input_dim` does not fit; networks without these attributes are not checked.

    Args:
        generator: may have an attribute `input_dim`.
        feature_dim: number of the encoder's features; None if unknown.
        num_classes: K, for the condition of K + 1 numbers.
        noise_dim: numbers of noise for each image.
    """
    given = getattr(generator, "input_dim", None)
    if not isinstance(given, int) or not isinstance(feature_dim, int):
        return
    expected = feature_dim + num_classes + 1 + noise_dim
    if given != expected:
        raise ValueError(
            f"input_dim of the generator is {given}, but features, condition and noise have {feature_dim} + "
            f"{num_classes + 1} + {noise_dim} = {expected} numbers: set input_dim={expected}."
        )


def check_same_classes(network: nn.Module, name: str, num_classes: int) -> None:
    """Raises ValueError if a network has an attribute `num_classes` with another number."""
    given = getattr(network, "num_classes", num_classes)
    if given != num_classes:
        raise ValueError(
            f"num_classes of the {name} ({type(network).__name__}) is {given}, but that of the module is "
            f"{num_classes}: set both to the same number."
        )
