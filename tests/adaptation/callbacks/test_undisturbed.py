import random

import numpy as np
import pytest
import torch
from adaptation_pictures import dann

from lightning_recall.adaptation.callbacks.undisturbed import undisturbed


@pytest.mark.parametrize("fails", [False, True])
def test_modes_and_random_states_are_restored(fails):
    module = dann()
    module.classifier.eval()  # a frozen part stays in evaluation mode
    modes = [layer.training for layer in module.modules()]
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # the generator that users draw from
    random.seed(0)
    expected = (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random())  # noqa: NPY002  # the generator that users draw from
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  # the generator that users draw from
    random.seed(0)
    try:
        with undisturbed(module):
            assert not any(layer.training for layer in module.modules())
            assert not torch.is_grad_enabled()
            torch.rand(5), np.random.rand(5), random.random()  # noqa: NPY002  # the generator that users draw from
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [layer.training for layer in module.modules()] == modes
    assert torch.is_grad_enabled()
    assert (torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()) == expected  # noqa: NPY002  # the generator that users draw from
