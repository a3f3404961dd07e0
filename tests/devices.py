"""A simulated accelerator: tensors on another device than the CPU, whose values are computed on the CPU.

It counts the calls for which a CUDA device would wait for its queue, and raises errors for mixed devices.
"""

import traceback
from collections import Counter
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

#: Devices of a test that also runs on a GPU, if there is one.
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)]
#: The autograd engine has no queue for a device that is missing, except for meta, which is in use, and this one.
DEVICE = torch.device('lazy')
CPU = torch.device('cpu')
aten = torch.ops.aten
#: Operations whose result, or its shape, the host reads.
READS = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
INDEXING = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
}
#: Operations that raise an error on CUDA with torch.use_deterministic_algorithms in torch 2.5 or later. Bilinear
#: interpolation is not in the list, because F.interpolate replaces it in this mode.
NONDETERMINISTIC = {
    '_adaptive_avg_pool2d_backward',
    '_adaptive_avg_pool3d_backward',
    '_ctc_loss_backward',
    'adaptive_max_pool2d_backward',
    'avg_pool3d_backward',
    'cumsum',
    'fractional_max_pool2d_backward',
    'fractional_max_pool3d_backward',
    'grid_sampler_2d_backward',
    'grid_sampler_3d_backward',
    'histc',
    'kthvalue',
    'max_pool3d_with_indices_backward',
    'max_unpool2d',
    'max_unpool3d',
    'median',
    'put_',
    'reflection_pad1d_backward',
    'reflection_pad2d_backward',
    'reflection_pad3d_backward',
    'replication_pad1d_backward',
    'replication_pad2d_backward',
    'replication_pad3d_backward',
    'scatter_reduce',
    'scatter_reduce_',
    'upsample_bicubic2d_backward',
    'upsample_linear1d_backward',
    'upsample_trilinear3d_backward',
}
#: Operations without a deterministic implementation unless their fourth argument, the reduction, is `none`.
WITH_REDUCTION = {aten.nll_loss_forward.default, aten.nll_loss2d_forward.default}


class Placed(torch.Tensor):
    """Tensor on the simulated device."""

    @staticmethod
    def __new__(cls, elem: torch.Tensor, requires_grad: bool = False) -> Any:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=DEVICE,
            requires_grad=requires_grad,
        )

    def __init__(self, elem: torch.Tensor, requires_grad: bool = False) -> None:
        self.elem = elem

    def __repr__(self, **kwargs: Any) -> str:
        return f'Placed({self.elem})'

    def tolist(self) -> Any:
        return self.cpu().tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, None)


def place(value: Any) -> Any:
    """Return a tensor, or the tensors of a collection, on the simulated device."""
    return tree_map(lambda x: Placed(x.detach()) if isinstance(x, torch.Tensor) and not is_placed(x) else x, value)


def fetch(value: Any) -> Any:
    """Return a tensor, or the tensors of a collection, on the CPU, without counting."""
    return tree_map(lambda x: x.detach().elem if is_placed(x) else x, value)


def is_placed(x: Any) -> bool:
    return isinstance(x, Placed)


def run(func: Any, args: Any, kwargs: Any, mode: 'Simulation | None') -> Any:
    """Compute an operation on the CPU, and place its output where a device would."""
    flat = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, torch.Tensor)]
    devices = {is_placed(x) for x in flat if x.ndim or is_placed(x)}
    onto = kwargs.get('device')
    transfer = func in (aten._to_copy.default, aten.copy_.default)
    if mode is not None:
        mode.see(func, args, kwargs, flat)
    if not any(map(is_placed, flat)) and (onto is None or torch.device(onto) != DEVICE):
        return func(*args, **kwargs)
    if devices == {True, False} and not transfer and func not in INDEXING:
        raise RuntimeError(f'{func} got tensors on the CPU and on the device: {[tuple(x.shape) for x in flat]}')
    inner = tree_map(lambda x: x.elem if is_placed(x) else x, (args, kwargs))
    plain = {**inner[1], **({'device': CPU} if onto is not None else {})}
    out = func(*inner[0], **plain)
    if func is aten._to_copy.default and onto is not None and torch.device(onto) == CPU:
        return out
    out = tree_map(lambda x: Placed(x) if isinstance(x, torch.Tensor) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


class Simulation(TorchDispatchMode):
    """Context in which factory functions can make tensors on the device, and operations are seen.

    Args:
        float64: Whether the device has float64; if not, such an operation is an error.

    Attributes:
        waits: Calls for which the host would wait for the device, with the line of the package that calls them.
        nondeterministic: Operations without a deterministic implementation on CUDA, with their line.
    """

    def __init__(self, float64: bool = True) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.nondeterministic: Counter[tuple[str, str]] = Counter()
        self.float64 = float64

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {}, self)

    def see(self, func: Any, args: Any, kwargs: Any, flat: Any) -> None:
        onto = kwargs.get('device')
        placed = [x for x in flat if is_placed(x)]
        meant = onto is not None and torch.device(onto) == DEVICE
        if not placed and not meant:
            return
        name = func.overloadpacket.__name__
        if name in NONDETERMINISTIC or (func in WITH_REDUCTION and args[3] != 0):
            self.nondeterministic[name, where()] += 1
        if not self.float64:
            double = [x for x in placed if x.dtype == torch.float64]
            wanted = kwargs.get('dtype') == torch.float64 and onto != CPU
            if double or wanted or (meant and any(x.dtype == torch.float64 for x in flat)):
                raise TypeError(f'{func}: the device has no float64, at {where()}')
        if self.is_wait(func, args, kwargs, placed, meant):
            self.waits[func.overloadpacket.__name__, where()] += 1

    def is_wait(self, func: Any, args: Any, kwargs: Any, placed: Any, meant: bool) -> bool:
        if func in READS:
            return True
        if func is aten.repeat_interleave.Tensor:
            return kwargs.get('output_size') is None
        if func in INDEXING:
            indices = [x for x in args[1] if x is not None]
            return any(x.dtype in (torch.bool, torch.uint8) or not is_placed(x) for x in indices)
        if func is aten._to_copy.default and 'device' in kwargs and kwargs['device'] is not None:
            return is_placed(args[0]) != meant and not (meant and kwargs.get('non_blocking'))
        if func is aten.copy_.default and is_placed(args[0]) != is_placed(args[1]):
            return not (is_placed(args[0]) and (any(args[2:3]) or kwargs.get('non_blocking')))
        return False


def where() -> str:
    """Return the innermost line of the package on the stack, or the innermost one of another library."""
    stack = [f for f in traceback.extract_stack() if f.filename != __file__ and '/torch/' not in f.filename]
    ours = [f for f in stack if '/torchgeo_omnisat/' in f.filename]
    frame = (ours or stack)[-1]
    return f'{"/".join(frame.filename.split("/")[-3:])}:{frame.lineno}'


def _autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
    return AUTOCAST('cpu' if device_type == DEVICE.type else device_type, *args, **kwargs)


def _tensor(*args: Any, device: Any = None, **kwargs: Any) -> Any:
    return TENSOR(*args, **kwargs) if device is None else TENSOR(*args, **kwargs).to(device)


AUTOCAST, TENSOR = torch.autocast, torch.tensor


@contextmanager
def simulated(**kwargs: Any) -> Any:
    """Return a :class:`Simulation`, whose device has autocast and activation checkpointing."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            mock.patch('torch.autocast', _autocast),
            mock.patch('torch.tensor', _tensor),
            mock.patch('torch.utils.checkpoint._infer_device_type', return_value='cpu'),
            Simulation(**kwargs) as mode,
        ):
            yield mode
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


class SimulatedStrategy(SingleDeviceStrategy):
    """Strategy that trains on the simulated device."""

    strategy_name = 'simulated'

    def __init__(self) -> None:
        super().__init__(device=CPU)

    def model_to_device(self) -> None:
        assert self.model is not None
        self.model._apply(place)
        self.model._device = DEVICE

    def batch_to_device(self, batch: Any, device: Any = None, dataloader_idx: int = 0) -> Any:
        return super().batch_to_device(batch, DEVICE, dataloader_idx)

    @property
    def root_device(self) -> torch.device:
        return CPU
