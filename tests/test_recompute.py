import weakref
from functools import partial

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_recall import RecallAtKLoss, chunked_forward

LABELS = torch.arange(10) // 2


class DropPathNet(nn.Module):
    """Dropout, drop-path and BatchNorm: all that a second pass could get wrong."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 12)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(0.3)
        self.block = nn.Linear(12, 12)
        self.drop_path = timm.layers.DropPath(0.4)
        self.last = nn.Linear(12, 4)

    def forward(self, x):
        hidden = self.drop(torch.tanh(self.norm(self.first(x))))
        return self.last(hidden + self.drop_path(self.block(hidden)))


def gradients(model, forward):
    torch.manual_seed(1)
    model.zero_grad()
    loss = RecallAtKLoss(ks=(1, 2), rank_temperature=0.3)(forward(), LABELS)
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("chunk_size", [1 + 1, 3, 4, 10, 99])  # BatchNorm needs two; 3 and 4 leave a ragged last chunk
def test_gradients_equal_the_same_chunks_in_one_graph(chunk_size):
    model = DropPathNet().double()
    inputs = torch.randn(10, 6, dtype=torch.float64)
    chunks = inputs.split(chunk_size)
    if len(chunks[-1]) == 1:
        chunks = (*chunks[:-2], torch.cat(chunks[-2:]))  # BatchNorm needs two
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}

    expected_loss, expected = gradients(model, lambda: torch.cat([model(chunk) for chunk in chunks]))
    expected_statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.load_state_dict(statistics, strict=False)
    loss, actual = gradients(model, lambda: chunked_forward(model, chunks, chunk_size + 1))

    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-14)
    assert max(g.abs().max() for g in expected) > 1e-3
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-12, rtol=0)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected_statistics[name]), name  # updated once a chunk, and counted once


def test_a_tensor_is_split_like_given_chunks():
    model = DropPathNet().eval()
    inputs = torch.randn(10, 6)
    torch.testing.assert_close(chunked_forward(model, inputs, 3), model(inputs))
    torch.testing.assert_close(chunked_forward(model, list(inputs.split(5)), 3), model(inputs))


def test_a_method_and_a_function_are_encoders_too():
    class Towers(nn.Module):
        def __init__(self):
            super().__init__()
            self.image = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))

        def encode_image(self, x):
            return self.image(x)

    towers, inputs = Towers(), torch.randn(8, 6)
    chunked_forward(towers.encode_image, inputs, 2).sum().backward()
    assert towers.image[1].num_batches_tracked == 4
    weight = torch.randn(6, 4, requires_grad=True)
    chunked_forward(lambda x: x @ weight, inputs, 3).sum().backward()
    torch.testing.assert_close(weight.grad, inputs.sum(0)[:, None].expand(6, 4))


@pytest.mark.parametrize("wrap", [lambda net: lambda x: F.normalize(net(x), dim=1), lambda net: partial(net.forward)])
def test_batch_norm_inside_a_function_is_updated_once(wrap):
    plain, wrapped = (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)) for _ in range(2))
    wrapped.load_state_dict(plain.state_dict())
    inputs = torch.randn(12, 6)
    for chunk in inputs.split(3):
        plain(chunk)
    chunked_forward(wrap(wrapped), inputs, 3).square().sum().backward()
    assert wrapped[1].num_batches_tracked == 4
    assert torch.equal(wrapped[1].running_mean, plain[1].running_mean)


def test_chunks_are_even():
    sizes = []
    chunked_forward(lambda x: sizes.append(len(x)) or x, torch.randn(129, 6), 128)
    assert sizes == [65, 64]  # BatchNorm could not take a chunk of one


def test_autocast_is_the_same_in_both_passes():
    model, inputs = nn.Linear(6, 4), torch.randn(9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = model(inputs), chunked_forward(model, inputs, 2)
    assert chunked.dtype == torch.bfloat16
    expected = torch.autograd.grad(whole.float().square().sum(), model.weight)
    actual = torch.autograd.grad(chunked.float().square().sum(), model.weight)
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0.02)


class LiveMemory(TorchDispatchMode):
    """Notes the largest number of bytes that tensors made under it held at one time."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.note(tensor.untyped_storage())
        return result

    def note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen:
            return
        self.seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.forget, key, size)

    def forget(self, key, size):
        self.seen.discard(key)
        self.live -= size


def peak_bytes(forward):
    with LiveMemory() as memory:
        forward().square().sum().backward()
    return memory.peak


def test_one_chunks_activations_live_at_a_time():
    layers = [layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(16, 1))
    inputs = torch.randn(4096, 16)
    one_chunk = peak_bytes(lambda: model(inputs[:128]))
    whole = peak_bytes(lambda: model(inputs))
    chunked = peak_bytes(lambda: chunked_forward(model, inputs, 128))
    assert whole > 6 * one_chunk  # else there is nothing to save
    assert chunked < 1.3 * one_chunk  # 32 chunks, and the embeddings of all of them


def test_without_gradients_nothing_is_kept():
    with torch.no_grad():
        assert not chunked_forward(nn.Linear(6, 4), torch.randn(9, 6), 2).requires_grad


@pytest.mark.parametrize("chunk_size", [0, -3])
def test_chunk_size_must_be_positive(chunk_size):
    with pytest.raises(ValueError, match=f"chunk_size must be at least 1, got {chunk_size}"):
        chunked_forward(nn.Linear(6, 4), torch.randn(9, 6), chunk_size)


@pytest.mark.parametrize("inputs", [[], torch.ones(0, 6)])
def test_no_inputs_are_refused(inputs):
    with pytest.raises(ValueError, match="nothing to embed"):
        chunked_forward(nn.Linear(6, 4), inputs, 2)
