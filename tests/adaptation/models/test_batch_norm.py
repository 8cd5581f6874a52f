import pytest
import torch
from torch import nn

from lightning_recall.adaptation.models.batch_norm import check_batch_norm


def test_one_input_of_batch_norm_in_training_raises():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"at least 2 images .* got 1: set a larger batch_size"):
        check_batch_norm(network, torch.zeros(1, 3))
    check_batch_norm(network, torch.zeros(2, 3))
    check_batch_norm(network.eval(), torch.zeros(1, 3))
    check_batch_norm(nn.Linear(3, 2), torch.zeros(1, 3))
