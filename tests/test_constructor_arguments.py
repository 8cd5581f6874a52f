import copy
import inspect
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_recall import ImageEmbedder, RecallAtKLoss, RetrievalModule, SimilarityMixup
from lightning_recall.constructor_arguments import Code, current_arguments, record_arguments
from lightning_recall.losses import ContrastiveLoss, MultipleLosses
from lightning_recall.losses.base import RetrievalLoss
from lightning_recall.models import MultiScale, SmallConvNet


class Squared(RetrievalLoss):
    """Its attribute is not the argument: building it with the attribute would square the margin again."""

    def __init__(self, margin, distance=None, *, scale=1.0):
        super().__init__()
        self.margin = margin**2
        self.distance = distance
        self.scale = scale


class Inherits(Squared):
    pass


class Fixed(Squared):
    def __init__(self, name):
        super().__init__(3.0, scale=5.0)
        self.name = name


def test_arguments_are_known_by_name_with_their_defaults():
    assert current_arguments(Squared(3.0)) == {"margin": 3.0, "distance": None, "scale": 1.0}
    assert current_arguments(Inherits(3.0, scale=2)) == {"margin": 3.0, "distance": None, "scale": 2}
    assert current_arguments(Fixed("a")) == {"name": "a"}  # not those that it passes on


def test_an_attribute_counts_if_it_holds_the_argument():
    loss = Squared(3.0)
    loss.margin, loss.scale = 7.0, 4.0
    assert current_arguments(loss) == {"margin": 3.0, "distance": None, "scale": 4.0}
    module = RetrievalModule(ImageEmbedder(SmallConvNet(), 4), RecallAtKLoss(), chunk_size="auto")
    module.chunk_size = 64  # measured
    assert current_arguments(module)["chunk_size"] == "auto"
    assert current_arguments(module)["mixup"] is None
    module.mixup, module.test_time_augmentation = SimilarityMixup(), MultiScale(flip=False)
    module.loss = ContrastiveLoss()
    module.embedder.freeze_batch_norm = True
    arguments = current_arguments(module)
    assert arguments["mixup"] is module.mixup
    assert arguments["test_time_augmentation"] is module.test_time_augmentation
    assert arguments["loss"] is module.loss
    assert current_arguments(arguments["embedder"])["freeze_batch_norm"] is True
    assert current_arguments(arguments["embedder"])["pooling"] is None  # the attribute is a layer


def test_lists_and_paths_are_copied():
    widths = [8, 8, 8]
    network = SmallConvNet(widths=widths)
    widths.append(9)
    assert current_arguments(network)["widths"] == [8, 8, 8]
    parts = [ContrastiveLoss(), RecallAtKLoss()]
    assert current_arguments(MultipleLosses(parts)) == {"losses": parts, "weights": [1.0, 1.0]}
    assert current_arguments(Squared(1.0, Path("a") / "b"))["distance"] == "a/b"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (partial(torch.optim.SGD, lr=0.1), "SGD(lr=0.1)"),
        ([partial(torch.optim.lr_scheduler.StepLR, step_size=2), len], "StepLR(step_size=2), len"),
        (torch.zeros(2), "Tensor"),
        ({"a": nn.ReLU}, "dict"),
    ],
)
def test_other_values_are_named_without_addresses(value, text):
    assert current_arguments(Squared(1.0, value))["distance"] == Code(text)


def test_a_list_of_arguments_is_not_recorded():
    @record_arguments
    class Parts(nn.Module):
        def __init__(self, *parts, bias=True):
            super().__init__()

    assert current_arguments(Parts()) == {"bias": True}
    assert current_arguments(Parts(nn.ReLU())) is None
    assert current_arguments(nn.Sequential()) is None


def test_further_keywords_have_their_own_names():
    @record_arguments
    class Keywords(nn.Module):
        def __init__(self, a, **more):
            super().__init__()

    assert current_arguments(Keywords(1, b=2, c="d")) == {"a": 1, "b": 2, "c": "d"}


def test_copies_and_pickles_keep_the_arguments():
    module = RetrievalModule(ImageEmbedder(SmallConvNet(), 4), RecallAtKLoss(ks=(1, 2)))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        arguments = current_arguments(copied)
        assert arguments["embedder"] is copied.embedder
        assert current_arguments(arguments["loss"])["ks"] == [1, 2]


def test_constructors_keep_their_signatures_and_messages():
    assert list(inspect.signature(SmallConvNet).parameters) == ["in_channels", "image_size", "widths"]
    assert inspect.getfullargspec(Squared.__init__).kwonlyargs == ["scale"]
    with pytest.raises(TypeError, match=r"^Squared.__init__\(\) missing 1 required positional argument: 'margin'"):
        Squared()
