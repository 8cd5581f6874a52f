import random
import re
from collections import OrderedDict, UserDict, namedtuple
from functools import partial

import numpy as np
import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import nn

from lightning_recall import RecallAtKLoss, chunked_forward
from lightning_recall.benchmarks.measure import peak_tensor_bytes
from lightning_recall.recompute import chunks as chunks_module

pytestmark = pytest.mark.filterwarnings("ignore:.* expects unit-norm embeddings")

LABELS = torch.arange(10) // 2


class DropPathNet(nn.Module):
    """Dropout, drop-path and BatchNorm: everything that a second pass could compute differently."""

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
    loss, actual = gradients(model, lambda: chunked_forward(model, list(chunks), chunk_size + 1))

    assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-14)
    assert max(g.abs().max() for g in expected) > 1e-3
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-12, rtol=0)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected_statistics[name]), name  # updated and counted once per chunk


def test_a_tensor_is_split_like_a_list_of_chunks():
    model = DropPathNet().eval()
    inputs = torch.randn(10, 6)
    torch.testing.assert_close(chunked_forward(model, inputs, 3), model(inputs))
    torch.testing.assert_close(chunked_forward(model, list(inputs.split(5)), 3), model(inputs))


def test_methods_and_functions_are_embedders():
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
    assert sizes == [65, 64]  # BatchNorm does not support a chunk of one row


def test_autocast_is_the_same_in_both_passes():
    model, inputs = nn.Linear(6, 4), torch.randn(9, 6)
    with torch.autocast("cpu", torch.bfloat16):
        whole, chunked = model(inputs), chunked_forward(model, inputs, 2)
    assert chunked.dtype == torch.bfloat16
    expected = torch.autograd.grad(whole.float().square().sum(), model.weight)
    actual = torch.autograd.grad(chunked.float().square().sum(), model.weight)
    torch.testing.assert_close(actual, expected, atol=0.05, rtol=0.02)


def peak_bytes(forward):
    return peak_tensor_bytes(lambda: forward().square().sum().backward())


def test_only_one_chunk_stores_its_activations():
    layers = [layer for _ in range(8) for layer in (nn.Linear(16, 16), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(16, 1))
    inputs = torch.randn(4096, 16)
    one_chunk = peak_bytes(lambda: model(inputs[:128]))
    whole = peak_bytes(lambda: model(inputs))
    chunked = peak_bytes(lambda: chunked_forward(model, inputs, 128))
    assert whole > 6 * one_chunk  # otherwise there is nothing to save
    assert chunked < 1.3 * one_chunk  # 32 chunks, and the embeddings of all of them


def test_without_gradients_nothing_is_saved(monkeypatch):
    monkeypatch.setattr(chunks_module, "FirstPassState", None)  # copies buffers and random states
    with torch.no_grad():
        assert not chunked_forward(nn.Linear(6, 4), torch.randn(9, 6), 2).requires_grad


def both_ways(embedder, inputs, chunk_size, buffers=None, **kwargs):
    """Gradients of chunked_forward, and of the same chunks in one graph, from the same random state and buffers."""
    chunks = list(inputs.tensor_split(-(-len(inputs) // chunk_size)))
    results = []
    for forward in (
        lambda: torch.cat([embedder(c) for c in chunks]),
        lambda: chunked_forward(embedder, chunks, 99, **kwargs),
    ):
        owner = embedder if isinstance(embedder, nn.Module) else embedder.__self__
        if buffers is not None:
            owner.load_state_dict(buffers, strict=False)
        random.seed(4)
        np.random.seed(4)  # noqa: NPY002  # what an embedder may draw from
        torch.manual_seed(4)
        owner.zero_grad()
        loss = RecallAtKLoss(ks=(1, 2), rank_temperature=0.3)(F.normalize(forward(), dim=1), LABELS)
        loss.backward()
        state = {name: buffer.clone() for name, buffer in owner.named_buffers()}
        results.append(([p.grad.clone() for p in owner.parameters() if p.grad is not None], state, torch.rand(1)))
    return results


def assert_same(results):
    (expected, expected_state, expected_next), (actual, state, following) = results
    assert max(g.abs().max() for g in expected) > 1e-3
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-12, rtol=0)
    for name in state:
        torch.testing.assert_close(state[name], expected_state[name], atol=1e-12, rtol=0)
    assert torch.equal(following, expected_next)  # random numbers continue as if nothing had been recomputed


class Noisy(nn.Module):
    """Draws from Python's and numpy's global generators."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x):
        noise = torch.from_numpy(np.random.randn(*x.shape))  # noqa: NPY002  # the global generator is the point
        return self.layer(torch.tanh(x + noise) * random.choice([0.5, 2.0]))


def spectral():
    torch.manual_seed(0)
    return nn.utils.parametrizations.spectral_norm(nn.Linear(6, 4)).double()


def frozen_batch_norm():
    net = DropPathNet().double()
    net.norm.eval()
    return net


@pytest.mark.parametrize("make", [lambda: Noisy().double(), spectral, frozen_batch_norm])
@pytest.mark.parametrize("keep_chunks", [1, 2, 9])
def test_random_numbers_and_buffers_are_the_same_in_both_passes(make, keep_chunks):
    net = make()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    inputs = torch.randn(10, 6, dtype=torch.float64)
    assert_same(both_ways(net, inputs, 3, buffers, keep_chunks=keep_chunks))


class Unversioned(nn.Module):
    """Buffers that change without increasing _version: those of batch_norm, and those changed through `.data`."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x):
        self.count.data.add_(1)
        out = F.batch_norm(self.layer(x), self.mean, self.var, training=self.training)
        return out + self.count  # a chunk sees the number of earlier chunks

    def embed(self, x):
        return self(x)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: net,
        lambda net: net.embed,
        lambda net: lambda x: net.forward(x),  # not the module: no hook is called
        lambda net: partial(Unversioned.forward, net),
        lambda net: partial(net.embed),
        lambda net: partial(lambda x, net: net.forward(x), net=net),
    ],
)
def test_buffers_that_change_without_a_version_change_once(wrap):
    net, inputs = Unversioned().double(), torch.randn(12, 6, dtype=torch.float64)
    results = []
    for chunked in (False, True):
        for name, value in Unversioned().double().named_buffers():
            getattr(net, name).copy_(value)
        net.zero_grad()
        embedder = wrap(net)
        outputs = chunked_forward(embedder, inputs, 4) if chunked else torch.cat([embedder(c) for c in inputs.split(4)])
        outputs.square().sum().backward()
        results.append((net.layer.weight.grad.clone(), net.mean.clone(), net.var.clone(), net.count.clone()))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
    assert net.count == 3


class Counts(nn.Module):
    """Counts its passes in place, or in a new tensor each time."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        if self.in_place:
            self.count.add_(1)
        else:
            self.count = self.count + 1
        return x + self.count.clone()


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.InstanceNorm1d(
            2, momentum=0.3, track_running_stats=True
        ),  # increases neither _version nor num_batches_tracked
        lambda: Counts(in_place=True),
        lambda: Counts(in_place=False),
    ],
)
def test_buffers_that_only_later_chunks_change_change_once(make):
    inputs = torch.randn(12, 6, dtype=torch.float64)
    inputs[:, 0] = (torch.arange(12) >= 4).double()  # the first chunk takes another path
    results = []
    for chunked in (False, True):
        torch.manual_seed(0)
        layer, state = nn.Linear(6, 4).double(), make().double()

        def encode(x, layer=layer, state=state):
            hidden = layer(x)
            return hidden if x[0, 0] == 0 else state(hidden.view(-1, 2, 2)).flatten(1)

        out = chunked_forward(encode, inputs, 4) if chunked else torch.cat([encode(c) for c in inputs.split(4)])
        out.pow(3).sum().backward()
        results.append(({name: buffer.clone() for name, buffer in state.named_buffers()}, layer.weight.grad))
    torch.testing.assert_close(results[1], results[0], atol=1e-10, rtol=0)


def test_global_random_numbers_continue_after_a_replay():
    net = Noisy().double()
    states = []
    for chunk_size in (9, 3):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002  # the global generator is the point
        for part in torch.ones(9, 6, dtype=torch.float64).split(3) if chunk_size == 9 else [torch.ones(9, 6).double()]:
            chunked_forward(net, part, 3).sum().backward()
        states.append((random.random(), np.random.rand()))  # noqa: NPY002  # the global generator is the point
    assert states[0] == states[1]


def test_a_second_backward_replays_the_same_state():
    net = Unversioned().double()
    loss = chunked_forward(net, torch.randn(12, 6, dtype=torch.float64), 4).square().sum()
    first, second = (torch.autograd.grad(loss, net.layer.weight, retain_graph=True)[0] for _ in range(2))
    torch.testing.assert_close(first, second, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "outputs",
    [
        lambda out: {"embeddings": out, "kept": out[:, 0] > 0, "count": torch.arange(len(out))},
        lambda out: {"embeddings": out, "nothing": out[:, :0]},
        lambda out: {"embeddings": out, "broken": out.detach() * torch.nan},
        lambda out: {"embeddings": out, "far": out.detach() / 0},
    ],
)
def test_outputs_of_other_dtypes_are_compared(outputs):
    net = nn.Linear(6, 4)
    chunked_forward(lambda x: outputs(net(x)), torch.randn(10, 6), 3)["embeddings"].sum().backward()
    assert net.weight.grad.abs().sum() > 0


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(6, 5)
        self.embedding, self.logits = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x):
        hidden = torch.tanh(self.trunk(x))
        return {"embedding": self.embedding(hidden), "extras": (self.logits(hidden),)}

    def embed(self, x):
        return self(x)["embedding"]


def test_a_partly_used_output():
    net, inputs = TwoHeads().double(), torch.randn(10, 6, dtype=torch.float64)
    outputs = chunked_forward(net, inputs, 3)
    assert outputs["extras"][0].shape == (10, 3)
    torch.testing.assert_close(outputs, net(inputs))
    outputs["embedding"].square().sum().backward()
    assert net.logits.weight.grad is None
    expected = torch.autograd.grad(net(inputs)["embedding"].square().sum(), net.trunk.weight)[0]
    torch.testing.assert_close(net.trunk.weight.grad, expected, atol=1e-12, rtol=0)
    assert_same(both_ways(net.embed, inputs, 3))


class TextAndImage(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.image = nn.EmbeddingBag(9, 4), nn.Linear(6, 4)

    def forward(self, batch):
        views = [self.image(view) for view in batch["views"]]
        return self.text(batch["text"]["ids"]) + sum(views)


def test_any_pytree_of_tensors_is_split():
    net, sizes = TextAndImage(), []
    net.text.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    batch = {"text": {"ids": torch.randint(9, (10, 7))}, "views": (torch.randn(10, 6), torch.randn(10, 6))}
    whole = net(batch)
    for inputs in (batch, [batch]):
        sizes.clear()
        torch.testing.assert_close(chunked_forward(net, inputs, 4), whole)
        assert sizes == [4, 3, 3]


class BatchEncoding(UserDict):
    """Output of a tokenizer: a Mapping that is not a dict."""


class Text(nn.Module):
    """Records its inputs; sums token embeddings where the mask, if there is one, is 1."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.given = nn.Embedding(9, 4), []

    def forward(self, batch):
        self.given.append(type(batch))
        words = self.table(batch["ids"])
        mask = batch["mask"]
        summed = (words if mask is None else words * mask[..., None]).sum(1)
        return BatchEncoding(embeddings=summed, extras=BatchEncoding(logits=None, first=words[:, 0]))


@pytest.mark.parametrize("make", [dict, BatchEncoding, OrderedDict])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("listed", [False, True])
def test_mappings_with_entries_that_are_none(make, masked, listed):
    net = Text().double()
    ids, mask = torch.randint(9, (10, 7)), (torch.rand(10, 7) < 0.5).double()
    whole = net({"ids": ids, "mask": mask if masked else None})
    expected = torch.autograd.grad(whole["embeddings"].square().sum(), net.table.weight)[0]
    net.given.clear()
    batch = make(ids=ids, mask=mask if masked else None)
    found = chunked_forward(net, [batch] if listed else batch, 4)
    assert net.given == [OrderedDict if make is OrderedDict else dict] * 3
    assert type(found) is type(found["extras"]) is dict
    assert found["extras"]["logits"] is None
    torch.testing.assert_close(found["embeddings"], whole["embeddings"])
    torch.testing.assert_close(found["extras"]["first"], whole["extras"]["first"])
    actual = torch.autograd.grad(found["embeddings"].square().sum(), net.table.weight)[0]
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


def test_a_mapping_in_a_mapping_and_a_named_tuple():
    pair = namedtuple("pair", "left right")
    inputs = BatchEncoding(a=BatchEncoding(x=torch.arange(10.0)), pair=pair(torch.arange(10.0) * 2, None))

    def encode(batch):
        assert type(batch["a"]) is dict
        assert batch["pair"].right is None
        return batch["a"]["x"] + batch["pair"].left

    assert torch.equal(chunked_forward(encode, inputs, 4), 3 * torch.arange(10.0))


def test_inputs_get_their_gradient():
    net, inputs = TwoHeads().double(), torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(net(inputs)["embedding"].square().sum(), inputs)[0]
    actual = torch.autograd.grad(chunked_forward(net, inputs, 3)["embedding"].square().sum(), inputs)[0]
    torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)


class ChangesItsInput(nn.Linear):
    def forward(self, batch):
        return super().forward((batch["x"] if isinstance(batch, dict) else batch).mul_(2).clone())


def test_an_embedder_that_changes_its_input_is_rejected():
    chunks = [torch.randn(3, 6) for _ in range(3)]
    with pytest.raises((ValueError, RuntimeError), match=r"modify .* or its input|inplace operation"):
        chunked_forward(ChangesItsInput(6, 4), chunks, 3).sum().backward()
    with pytest.raises(ValueError, match="modify parameters, attributes or its input"):
        chunked_forward(ChangesItsInput(6, 4), [{"x": chunk} for chunk in chunks], 3).sum().backward()


class Fails(nn.Module):
    """Draws random numbers and updates buffers, and raises in pass number `at`."""

    def __init__(self, at):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.3))
        self.at, self.passes = at, 0

    def forward(self, x):
        self.passes += 1
        out = self.layers(x) * random.random() * np.random.rand()  # noqa: NPY002  # what an embedder may draw from
        if self.passes == self.at:
            raise RuntimeError("boom")
        return out


def draws():
    return torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002  # the global generator is the point


def step_until_it_fails(embedder, forward, backward):
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002  # the global generator is the point
    torch.manual_seed(1)
    loss = forward(embedder).sum()
    if backward:
        loss.backward()
    raise RuntimeError("boom")


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("at", [1, 2, 4, 5, 6, 7])  # four first passes, three recomputations
def test_after_an_error_the_state_is_that_of_plain_torch(at, as_function):
    inputs, results = torch.randn(12, 6), []
    whole = lambda embedder: torch.cat([embedder(chunk) for chunk in inputs.split(3)])  # noqa: E731  # one line
    for forward in (whole, lambda embedder: chunked_forward(embedder, inputs, 3)):
        net = Fails(at)
        embedder = (lambda x, net=net: net(x)) if as_function else net
        buffers = dict(net.named_buffers())
        with pytest.raises(RuntimeError, match="boom"):
            step_until_it_fails(embedder, forward, backward=forward is not whole)
        assert net.passes == (at if forward is not whole else min(at, 4))
        assert all(buffer is buffers[name] for name, buffer in net.named_buffers())
        assert not torch.nn.modules.module._global_forward_pre_hooks
        state = {name: value.clone() for name, value in net.state_dict().items()}
        following = draws()
        net.at = None
        net.zero_grad()
        chunked_forward(embedder, inputs, 3).sum().backward()  # the next step
        results.append((following, state, [p.grad for p in net.parameters()], dict(net.named_buffers())))
    torch.testing.assert_close(results[1], results[0])


def test_an_embedder_that_uses_checkpoint_itself():
    from torch.utils.checkpoint import checkpoint

    net = DropPathNet().double()

    class Inner(nn.Module):
        def __init__(self, use_reentrant):
            super().__init__()
            self.net, self.use_reentrant = net, use_reentrant

        def forward(self, x):
            hidden = self.net.drop(torch.tanh(self.net.norm(self.net.first(x))))
            return self.net.last(checkpoint(self.net.block, hidden, use_reentrant=self.use_reentrant))

    inputs = torch.randn(10, 6, dtype=torch.float64)
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    for use_reentrant in (False, True):
        inner = Inner(use_reentrant)
        assert_same(both_ways(inner, inputs, 4, {f"net.{name}": value for name, value in buffers.items()}))


def test_a_chunk_of_chunks_and_second_derivatives():
    net, inputs = TwoHeads().double(), torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    results = []
    for encode in (net.embed, lambda x: chunked_forward(lambda part: chunked_forward(net.embed, part, 2), x, 4)):
        loss = encode(inputs).pow(3).sum()
        (first,) = torch.autograd.grad(loss, inputs, create_graph=True)
        results.append((first.detach(), torch.autograd.grad(first.square().sum(), net.trunk.weight)[0]))
    assert results[0][1].abs().max() > 1e-3
    torch.testing.assert_close(results[1], results[0], atol=1e-10, rtol=0)


def test_kept_chunks_are_not_recomputed():
    net, passes = nn.Linear(6, 4), []
    net.register_forward_pre_hook(lambda *_: passes.append(1))
    for keep_chunks, expected in ((1, 9), (3, 7), (5, 5), (99, 5)):
        passes.clear()
        chunked_forward(net, torch.randn(10, 6), 2, keep_chunks).square().sum().backward()
        assert len(passes) == expected


def test_backward_can_be_repeated():
    net = DropPathNet().double()
    loss = chunked_forward(net, torch.randn(10, 6, dtype=torch.float64), 3).square().sum()
    first, second = (torch.autograd.grad(loss, list(net.parameters()), retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: whether its random state is kept")
def test_chunks_on_the_cpu_move_one_at_a_time():
    net = DropPathNet().double().cuda()
    chunks = list(torch.randn(10, 6, dtype=torch.float64).split(5))
    on_device = [chunk.cuda() for chunk in chunks]
    moved = gradients(net, lambda: chunked_forward(net, chunks, 5, device="cuda"))
    torch.testing.assert_close(moved, gradients(net, lambda: chunked_forward(net, on_device, 5)))


def test_chunks_are_moved_to_the_device():
    net, seen = nn.Linear(6, 4, device="meta"), []
    net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].device.type))
    chunked_forward(net, torch.randn(9, 6), 3, device="meta")
    assert seen == ["meta"] * 3


class OwnGenerator(nn.Linear):
    def __init__(self):
        super().__init__(6, 4)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        return super().forward(x + torch.rand(x.shape, generator=self.generator))


class ChangesItself(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.mul_(1.01)
        return super().forward(x * 1.0)


@pytest.mark.parametrize("embedder", [OwnGenerator(), ChangesItself(6, 4)])
def test_an_embedder_that_does_not_repeat_itself_raises(embedder):
    with pytest.raises(
        (ValueError, RuntimeError), match=r"Recomputing a chunk gave different embeddings|inplace operation"
    ):
        chunked_forward(embedder, torch.randn(10, 6), 4).square().sum().backward()


class ChangesOnce(nn.Linear):
    """Returns other embeddings only for its second chunk, and only when that is recomputed."""

    def forward(self, x):
        self.passes = getattr(self, "passes", 0) + 1
        return super().forward(x) * (3 if x[0, 0] == 1 and self.passes > 4 else 1)


def test_every_chunk_is_compared():
    inputs = torch.arange(4.0).repeat_interleave(2)[:, None].expand(8, 6)
    with pytest.raises(ValueError, match="Recomputing a chunk gave different embeddings"):
        chunked_forward(ChangesOnce(6, 4), inputs, 2).sum().backward()


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_lazy_buffers_raise():
    net = nn.Sequential(nn.Linear(6, 4), nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="LazyBatchNorm1d has an uninitialised lazy buffer running_mean: run"):
        chunked_forward(net, torch.randn(8, 6), 2)


@pytest.mark.parametrize(
    ("embedder", "message"),
    [
        (
            lambda x: x[:, : len(x)],
            r"the same trailing dimensions and dtype for all chunks, got \[\(3,\)\] and \[\(4,\)\]",
        ),
        (lambda x: x[:2], r"one row per input row \(4\), got \(2, 6\)"),
        (lambda x: x.sum(), r"one row per input row \(4\), got \(\)"),
        (lambda _: None, r"one row per input row \(4\), got NoneType"),
        (lambda _: {}, r"one row per input row \(4\), got NoneType"),
        (lambda x: {"embeddings": x, "name": "b"}, r"one row per input row \(4\), got str"),
        (lambda x: {"a": x, "b": x if len(x) < 4 else None}, r"got \[\(6,\), \(6,\)\] and \[\(6,\), None\]"),
    ],
)
def test_outputs_without_one_row_per_input_row_raise(embedder, message):
    with pytest.raises(ValueError, match=message):
        chunked_forward(embedder, torch.randn(10, 6), 4)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"a": torch.ones(4, 2), "b": torch.ones(3, 2)}, r"must have the same number of rows, got \[3, 4\]"),
        ([torch.ones(4, 2), torch.ones(4).long()], r"float32 2-d and torch.int64 1-d. .* pass tuple\(batch\)"),
        ({"a": torch.ones(4, 2), "b": ["x"] * 4}, "inputs must be tensors .* got str"),
        (torch.tensor(3.0), "inputs must be tensors .* got a tensor without dimensions"),
        ({"a": torch.ones(4, 2), "b": 5}, "inputs must be tensors .* got int"),
        (np.ones((4, 2)), "inputs must be tensors .* got ndarray; convert .* torch.as_tensor"),
        ([[1.0, 2.0]], "inputs must be tensors .* got float; convert .* torch.as_tensor"),
        (({},), "inputs are empty"),
    ],
)
def test_inputs_that_cannot_be_split_raise(inputs, message):
    with pytest.raises(ValueError, match=message):
        chunked_forward(lambda x: x, inputs, 4)


@pytest.mark.parametrize("wrong", [0, -3, 2.0, "4", None, True, torch.tensor(4)])
def test_chunk_counts_must_be_positive_integers(wrong):
    for settings in ({"chunk_size": wrong}, {"chunk_size": 4, "keep_chunks": wrong}):
        with pytest.raises(
            ValueError, match=rf"{list(settings)[-1]} must be .*at least 1, got .*" + re.escape(str(wrong))
        ):
            chunked_forward(nn.Linear(6, 4), torch.randn(9, 6), **settings)
    assert chunked_forward(nn.Linear(6, 4), torch.randn(9, 6), np.int64(4), np.int64(2)).shape == (9, 4)


@pytest.mark.parametrize("inputs", [[], torch.ones(0, 6), None, {"ids": None}])
def test_empty_inputs_are_rejected(inputs):
    with pytest.raises(ValueError, match="inputs are empty"):
        chunked_forward(nn.Linear(6, 4), inputs, 2)


@pytest.mark.parametrize("dynamic", [None, True])
def test_a_compiled_encoder_is_compiled_once(dynamic):
    torch._dynamo.reset()
    compiled = []

    def backend(graph, inputs):
        compiled.append(inputs)
        return graph.forward

    torch.manual_seed(0)
    net = DropPathNet().double()
    embedder = torch.compile(net, backend=backend, dynamic=dynamic)
    inputs = torch.randn(10, 6, dtype=torch.float64)
    for step in range(4):
        state = {name: buffer.clone() for name, buffer in net.named_buffers()}
        expected = gradients(
            net, lambda: torch.cat([net(chunk) for chunk in inputs.tensor_split(3)])
        )  # 4, 3 and 3 rows
        net.load_state_dict(state, strict=False)
        actual = gradients(net, lambda: chunked_forward(embedder, inputs, 4))
        torch.testing.assert_close(actual, expected, atol=1e-12, rtol=0)
        if step == 0:
            first = len(compiled)
    assert first == len(compiled) > 0
