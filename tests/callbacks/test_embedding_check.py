import numpy as np
import pytest
import torch

from lightning_recall.callbacks.embedding_check import (
    ReferenceEmbeddings,
    compare_with_reference,
    evenly_spaced,
    load_reference,
    saved_indices,
)

REFERENCE = ReferenceEmbeddings(torch.tensor([2, 5, 9]), torch.tensor([[3.0, 4.0], [0.0, 2.0], [torch.nan, 1.0]]))


def test_indices_are_evenly_spaced_with_the_first_and_the_last():
    assert evenly_spaced(torch.arange(5) * 3).tolist() == [0, 3, 6, 9, 12]
    assert evenly_spaced(torch.arange(1501)).tolist() == list(range(0, 1501, 100))
    assert evenly_spaced(torch.tensor([7])).tolist() == [7]


def test_the_reference_is_that_of_the_first_file_that_has_them(tmp_path):
    assert saved_indices(tmp_path).tolist() == []
    for number, ids in enumerate(([4, 0], [1, 4])):
        embeddings = np.array(ids, np.float32)[:, None] + 100 * number
        np.savez(tmp_path / f"shard-00-0000{number}.npz", ids=np.array(ids), embeddings=embeddings)
    assert saved_indices(tmp_path).tolist() == [0, 1, 4]
    assert load_reference(tmp_path, torch.tensor([1, 4])).embeddings.tolist() == [[101.0], [4.0]]


@pytest.mark.parametrize(("precision", "same", "other"), [("32-true", 0.045, 0.055), ("bf16-mixed", 0.14, 0.16)])
def test_a_distance_is_rounding_up_to_a_fraction_of_the_norm(precision, same, other):
    indices = torch.tensor([7, 9, 2])
    embeddings = torch.tensor([[8.0, 8.0], [torch.nan, 1.0], [3.0, 4.0 + same]])  # item 2 has norm 5
    assert compare_with_reference(REFERENCE, indices, embeddings, "here", precision).tolist() == [False, True, True]
    embeddings[2, 1] = 4 + other
    with pytest.raises(ValueError, match=r"item 2 differs from the saved one by (1\.1|3\.2) % of its norm, in here"):
        compare_with_reference(REFERENCE, indices, embeddings, "here", precision)


def test_items_that_are_not_saved_are_not_compared():
    assert compare_with_reference(REFERENCE, torch.tensor([0, 10]), torch.ones(2, 7), "here", "32-true").tolist() == [
        False,
        False,
    ]
    nothing = ReferenceEmbeddings(torch.empty(0, dtype=torch.int64), torch.empty(0, 2))
    assert compare_with_reference(nothing, torch.tensor([0, 10]), torch.ones(2, 2), "here", "32-true").tolist() == [
        False,
        False,
    ]
