"""Checks that the networks of a module fit each other and the images."""

from typing import Any

from torch import Tensor, nn

from lightning_recall.batch import type_and_shape
from lightning_recall.checks import first_line

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


def encoded(encoder: nn.Module, images: Tensor) -> Tensor:
    """Features (B, D) of images (B, 3, H, W); raises ValueError for features of another shape."""
    features: Tensor = encoder(images)
    check_features(features, len(images))
    return features


def classified(classifier: nn.Module, features: Tensor, num_classes: int) -> Tensor:
    """Logits (B, K) of features (B, D); raises ValueError for a network that does not fit."""
    logits: Tensor = apply_to_features(classifier, features, "classifier")
    check_class_logits(logits, len(features), num_classes, "classifier")
    return logits


def check_features(features: Any, num_images: int) -> None:
    """Raises ValueError unless an encoder returns features (B, D).

    Args:
        features: output of the encoder.
        num_images: B.
    """
    if isinstance(features, Tensor) and features.ndim == 2 and len(features) == num_images:
        return
    ndim = features.ndim if isinstance(features, Tensor) else 0
    if ndim == 4:
        pool = "" if features.shape[2:].numel() == 1 else "torch.nn.AdaptiveAvgPool2d(1) and "
        advice = f"append {pool}torch.nn.Flatten()"
    else:
        advice = "pool the tokens, or return that of the class" if ndim == 3 else "return only the features"
    raise ValueError(
        f"The encoder must return features of shape (B, D), B = {num_images}, got {type_and_shape(features)}: {advice}."
    )


def apply_to_features(network: nn.Module, features: Tensor, name: str) -> Any:
    """The output of a network for features (B, D).

    Raises:
        ValueError: if its first layer is for another number of features.
    """
    try:
        return network(features)
    except RuntimeError as error:  # of torch.nn.Linear
        if "shapes cannot be multiplied" not in str(error):
            raise
        dim = features.shape[1]
        raise ValueError(
            f"The {name} is built for another number of features than the {dim} that the encoder returns: set its "
            f"feature_dim, in_features of torch.nn.Linear, to {dim} ({first_line(error)})."
        ) from error


def check_returns_logits(network: nn.Module, name: str, wrong: tuple[type[nn.Module], ...]) -> None:
    """Raises ValueError for a `torch.nn.Sequential` that ends with a layer which makes probabilities of logits.

    Args:
        network: a network that must return logits; only a Sequential is known to return what its last layer returns.
        name: name of the network in the message.
        wrong: types of layers, such as `torch.nn.Sigmoid`.
    """
    last = network
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    if isinstance(last, wrong):
        layer = type(last).__name__
        raise ValueError(
            f"The {name} must return logits, because the loss applies {layer.lower()}, but it ends with {layer}: "
            "remove this layer."
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
        advice = ""
        if isinstance(logits, Tensor) and logits.shape == (num_images, 1):
            advice = ": remove the last dimension with .squeeze(1), or append torch.nn.Flatten(0)"
        elif isinstance(logits, Tensor) and logits.shape == (num_images, 2):
            advice = (
                ": two outputs with a softmax are the same function as one logit, positive for the source, so give the "
                "last layer one output, and append torch.nn.Flatten(0)"
            )
        raise ValueError(
            f"The {network} must return one domain logit per image, shape ({num_images},), got "
            f"{type_and_shape(logits)}{advice}."
        )


def check_generated(generated: Any, num_images: int, images: Tensor) -> None:
    """Raises ValueError unless `num_images` generated images have the size of real ones."""
    expected = (num_images, *images.shape[1:])
    if not isinstance(generated, Tensor) or generated.shape != expected:
        raise ValueError(
            f"The generator must return images of the size of the batch, {expected}, got {type_and_shape(generated)}: "
            "resize the images of the data module, or use another generator."
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
