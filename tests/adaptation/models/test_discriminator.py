import pytest
import torch
from torch import nn

from lightning_recall.adaptation.models import FeatureDiscriminator


def kinds(**kwargs):
    return [type(layer) for layer in FeatureDiscriminator(8, **kwargs).layers]


def test_layers_are_those_of_dann_for_photographs():
    hidden = [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert kinds() == [*hidden, *hidden, nn.Linear]
    widths = [layer.weight.shape for layer in FeatureDiscriminator(8).layers if isinstance(layer, nn.Linear)]
    assert widths == [(1024, 8), (1024, 1024), (1, 1024)]
    assert kinds(hidden_dims=(5,), norm=None, dropout=0.5) == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]


def test_logits_are_those_of_the_layers():
    network = FeatureDiscriminator(3, (4, 5), norm=None)
    features = torch.randn(6, 3)
    first, _, second, _, last = network.layers
    hidden = (features @ first.weight.T + first.bias).clamp(min=0)
    hidden = (hidden @ second.weight.T + second.bias).clamp(min=0)
    torch.testing.assert_close(network(features), (hidden @ last.weight.T + last.bias)[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_dim": 0}, "feature_dim must be at least 1, got 0"),
        ({"hidden_dims": ()}, r"width of at least one layer, got \[\]"),
        ({"hidden_dims": (4, 0)}, "hidden_dims must be at least 1, got 0"),
        ({"norm": "layer"}, "norm must be batch or null, got 'layer'"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_wrong_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        FeatureDiscriminator(**{"feature_dim": 3, **settings})
