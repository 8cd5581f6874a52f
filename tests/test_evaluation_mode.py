import pytest
from torch import nn

from lightning_recall.evaluation_mode import evaluation_mode


@pytest.mark.parametrize("error", [None, ValueError])
def test_each_layer_returns_to_its_mode(error):
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()))
    network[1][0].eval()
    before = [layer.training for layer in network.modules()]
    try:
        with evaluation_mode(network):
            assert not any(layer.training for layer in network.modules())
            if error is not None:
                raise error
    except ValueError:
        pass
    assert [layer.training for layer in network.modules()] == before == [True, True, True, False, True]
