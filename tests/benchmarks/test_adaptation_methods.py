import pytest
import torch

from lightning_recall.adaptation import DANNModule, DMADAModule, SourceOnlyModule
from lightning_recall.benchmarks.adaptation_methods import METHODS, NUM_CLASSES, build


@pytest.mark.parametrize("method", METHODS)
def test_methods_classify_digits_and_depend_on_the_seed(method):
    first, again, other = (build(method, seed, kl=0.25) for seed in (0, 0, 1))
    size = METHODS[method].image_size
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
    for module in (first, again, other):
        module.eval()
    assert first(images).shape == (4, NUM_CLASSES)
    assert torch.equal(first(images), again(images))
    assert not torch.equal(first(images), other(images))
    assert first.seed == 0


def test_names_say_what_is_built():
    built = {method: build(method, 0, kl=0.25) for method in METHODS}
    for method, module in built.items():
        kind = {"source": SourceOnlyModule, "DANN": DANNModule, "DM-ADA": DMADAModule}[method.split()[0]]
        assert type(module) is kind
        if not isinstance(module, SourceOnlyModule):
            mixes = "mixup" in method or method == "DM-ADA"
            assert (module.mixup is not None) == (mixes and "without" not in method)
    mixup = built["DANN + mixup"].mixup
    assert (mixup.clip, mixup.levels) == (0.3, ("feature",))
    assert set(built["DM-ADA"].mixup.levels) == {"pixel", "feature"}
    assert built["DM-ADA"].weights.kl == 0.25
    assert built["DM-ADA without mixup"].weights.kl == 0.25
