"""A large batch in the memory of one chunk: embeddings with gradients, activations recomputed chunk by chunk."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import checkpoint

Encoder = Callable[[Tensor], Tensor]


def chunked_forward(encoder: Encoder, inputs: Tensor | Sequence[Tensor], chunk_size: int) -> Tensor:
    """Embeds a batch in chunks of which only one keeps its activations at a time, then concatenates.

    The result is a part of the graph like any other: backward recomputes each chunk when its turn comes, so that a loss
    over the whole batch has its exact gradient, for one more forward pass of all chunks but the last. Works in
    automatic and manual optimization, and under autocast. Dropout and drop-path draw the same masks again.

    BatchNorm in train mode normalises each chunk by its own statistics, and updates its running statistics once per
    chunk, not again in the recomputation. Other layers that change themselves in a forward pass, such as spectral norm,
    are run twice.

    Args:
        encoder: a module, a method of one, or a function; maps (b, ...) to (b, D), each row on its own.
        inputs: (N, ...), or chunks already; what is longer than `chunk_size` is split evenly.
        chunk_size: largest number of rows in one pass of the encoder, from 1.

    Returns:
        (N, D), in the order of the inputs.

    Raises:
        ValueError: for a `chunk_size` below 1, or no inputs.

    >>> encoder = torch.nn.Linear(3, 2)
    >>> chunked_forward(encoder, torch.ones(10, 3), chunk_size=4).shape
    torch.Size([10, 2])
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}.")
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    chunks = [part for chunk in given if len(chunk) for part in chunk.tensor_split(-(-len(chunk) // chunk_size))]
    if not chunks:
        raise ValueError("There is nothing to embed: inputs hold no rows.")
    if not torch.is_grad_enabled():
        return torch.cat([encoder(chunk) for chunk in chunks])

    norms = batch_norms(encoder)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return recorded_batch_norms(norms), discarded_statistics(norms)

    # Backward starts with the last chunk: kept, it is gone before another is recomputed.
    *recomputed, kept = chunks
    embeddings = [checkpoint(encoder, chunk, use_reentrant=False, context_fn=contexts) for chunk in recomputed]
    return torch.cat([*embeddings, encoder(kept)])


def batch_norms(encoder: Encoder) -> set[_BatchNorm]:
    """BatchNorm layers of a module, or of the module whose method the encoder is; of a function, none are known."""
    owner = encoder if isinstance(encoder, nn.Module) else getattr(encoder, "__self__", None)
    return {m for m in owner.modules() if isinstance(m, _BatchNorm)} if isinstance(owner, nn.Module) else set()


@contextmanager
def recorded_batch_norms(norms: set[_BatchNorm]) -> Iterator[None]:
    """Adds the BatchNorm layers that run meanwhile, whatever calls them."""

    def note(module: nn.Module, inputs: object) -> None:  # noqa: ARG001  # torch gives both
        if isinstance(module, _BatchNorm):
            norms.add(module)

    handle = register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def discarded_statistics(norms: set[_BatchNorm]) -> Iterator[None]:
    """Lets BatchNorm layers in train mode update copies of their running statistics, which are thrown away.

    Switching `track_running_stats` off instead would save fewer tensors than the first pass did, which checkpoint
    refuses.
    """
    originals = [
        (module, name, buffer)
        for module in norms
        if module.training
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in originals:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in originals:
            setattr(module, name, buffer)
