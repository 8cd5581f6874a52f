import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, default_collate

from lightning_recall.callbacks.collate_order import CheckedCollate

TEXTS = [torch.arange(1, 2 + length) for length in (4, 2, 5, 2, 1, 3)]
ITEMS = [{"ids": ids, "name": str(number), "label": number % 2} for number, ids in enumerate(TEXTS)]


def padded(items):
    return {
        "ids": pad_sequence([item["ids"] for item in items], batch_first=True),
        "names": [item["name"] for item in items],
        "longest": max(len(item["ids"]) for item in items),
        "labels": torch.tensor([item["label"] for item in items]),
    }


def takes_apart(items):
    labels = [item.pop("label") for item in items]
    return pad_sequence([item["ids"] for item in items], batch_first=True), torch.tensor(labels)


def by_length(items):
    return padded(sorted(items, key=lambda item: len(item["ids"])))


def by_length_time_first(items):
    batch = by_length(items)
    return {**batch, "ids": batch["ids"].T}


KEEP = {
    "padded": padded,
    "takes apart": takes_apart,
    "lists": lambda items: [tuple(item.values()) for item in items][:],
}
KEEP["numpy"] = lambda items: (padded(items)["ids"].numpy().astype(float) * float("nan"), padded(items)["labels"])
DO_NOT = {
    "sorted": by_length,
    "time first": by_length_time_first,
    "reversed": lambda items: padded(items[::-1]),
    "rotated": lambda items: padded(items[1:] + items[:1]),
    "halves swapped": lambda items: padded([items[place] for place in (1, 0, 3, 2, 5, 4)]),
    "shuffled": lambda items: padded([items[place] for place in torch.randperm(len(items))]),
    "dropped": lambda items: padded([item for item in items if item["label"]]),
    "random": lambda items: {**padded(items), "noise": torch.randn(len(items))},
    "opaque": lambda items: (object(), padded(items)),
}


@pytest.mark.parametrize(
    ("name", "num_workers"), [*((name, 0) for name in (*KEEP, *DO_NOT)), ("padded", 1), ("sorted", 1)]
)
def test_reordering_is_detected(name, num_workers):
    collate = CheckedCollate({**KEEP, **DO_NOT}[name])
    for batch in DataLoader([dict(item) for item in ITEMS], batch_size=6, collate_fn=collate, num_workers=num_workers):
        assert type(batch) is type({**KEEP, **DO_NOT}[name]([dict(item) for item in ITEMS]))
    assert bool(collate.keeps_order) == (name in KEEP)


def test_one_reordered_batch_is_remembered():
    collate = CheckedCollate(by_length)
    collate(ITEMS[4:])  # lengths 2, 4: in order, but not if rotated
    assert not collate.keeps_order
    collate(ITEMS[:1])
    assert not collate.keeps_order


def test_single_items_and_items_that_cannot_be_copied():
    class NoCopy:
        def __copy__(self):
            raise TypeError("no")

    collate = CheckedCollate(len)
    assert collate([NoCopy()]) == 1
    assert collate.keeps_order
    assert collate([NoCopy(), NoCopy()]) == 2
    assert not collate.keeps_order
    assert torch.equal(CheckedCollate(default_collate)([1, 2]), torch.tensor([1, 2]))
