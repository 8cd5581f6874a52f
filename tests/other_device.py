"""A device that is not the CPU, played by the CPU: finds what would fail, or wait, on a GPU where there is none.

Its tensors say that they are on "meta" and compute on the CPU. As on a GPU, an operation on tensors of two devices is
refused, and whatever brings numbers to the processor is counted, since there a program waits for the device.
"""

from collections import Counter
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("meta")  # the only one beside the CPU that autograd takes without a driver
INDEXING = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"}
MAY_MIX = {"aten._to_copy", "aten.copy_"} | INDEXING  # indices may lie on the CPU
WAITS = {
    *("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten.bincount"),
    *("aten._unique2", "aten.unique_consecutive", "aten.unique_dim", "aten.repeat_interleave"),
}


class Away(Tensor):
    """A tensor of that device."""

    @staticmethod
    def __new__(cls, inner):
        like = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype}
        return Tensor._make_wrapper_subclass(cls, inner.shape, device=DEVICE, **like)

    def __init__(self, inner):
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError("a tensor of the other device outlived it")


class OtherDevice(TorchDispatchMode):
    """Runs operations; `operations` counts them by name, `waits` those that wait for the device."""

    def __init__(self):
        super().__init__()
        self.operations, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(func.overloadpacket)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        away = any(isinstance(tensor, Away) for tensor in tensors)
        if away:
            self.check(name, tensors)
            self.count(name, args)
        target = kwargs.get("device")
        made_here = target is not None and torch.device(target) == DEVICE
        inner_args, inner_kwargs = tree_map_only(Away, lambda tensor: tensor.inner, (args, kwargs))
        result = func(*inner_args, **{**inner_kwargs, "device": "cpu"} if made_here else inner_kwargs)
        if away and (target is not None and not made_here):
            self.waits["to the processor"] += 1
            return result.clone()
        if name == "aten.copy_":
            self.waits["to the processor"] += away and not isinstance(args[0], Away)
            return args[0]
        if not (away or made_here):
            return result
        wrapped = tree_map_only(Tensor, Away, result)
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if away else wrapped

    def check(self, name, tensors):
        """Refuses to mix devices, but for single numbers."""
        here = [tensor for tensor in tensors if not isinstance(tensor, Away) and tensor.ndim]
        if here and (name not in MAY_MIX or (name in INDEXING and not isinstance(tensors[0], Away))):
            raise RuntimeError(f"{name} of tensors on two devices")

    def count(self, name, args):
        """Notes an operation, and whether it waits: for how many there are, or what they are."""
        self.operations[name] += 1
        masks = [t for t in args[1] if isinstance(t, Tensor) and t.dtype == torch.bool] if name in INDEXING else []
        if name in WAITS or masks:
            self.waits[name] += 1


class Reading(TorchFunctionMode):
    """What torch does not let a tensor of one's own do."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu") == DEVICE:
            return torch.tensor(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if func in (Tensor.tolist, Tensor.__format__) and isinstance(args[0], Away):
            self.device.waits["reading"] += 1
            return func(args[0].inner, *args[1:], **kwargs)
        if func is Tensor.numpy and isinstance(args[0], Away):
            raise TypeError("numpy reads only the processor's memory")
        return func(*args, **kwargs)


@contextmanager
def other_device():
    """Within it, `to(DEVICE)` moves tensors and modules there."""
    autocast, device = torch.autocast, OtherDevice()
    torch.autocast = lambda kind, **given: nullcontext() if kind == DEVICE.type else autocast(kind, **given)
    try:
        with device, Reading(device):
            yield device
    finally:
        torch.autocast = autocast
