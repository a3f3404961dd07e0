# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Compilation of the repeated parts of a model by ``torch.compile``.

Only *regions* are compiled, modules that compute a fixed function of tensors. The selection of valid images and the
loop over modalities remain Python, so a graph depends neither on the number of dates nor on the modalities of a batch,
and images that are not valid are not computed. Modules of the same class and shapes share a graph: the levels of the
encoders of two time series, or the blocks of the fusion.
"""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from timm.models.eva import EvaBlock
from torch import Tensor, nn

from .classification import LabelHead
from .encoders.image import ImageEncoder
from .encoders.series.temporal import TemporalAttention
from .encoders.series.utae import DownBlock, UTAEEncoder, WeightedSums
from .fusion import ModalityAttention
from .omnisat import TokenHead
from .segmentation import Expert

#: Default backend of ``torch.compile``.
BACKEND = 'inductor'
#: Mode of ``torch.compile``.
Mode = Literal['default', 'reduce-overhead', 'max-autotune', 'max-autotune-no-cudagraphs']
MODES: tuple[str, ...] = get_args(Mode)
#: Modes that record CUDA graphs.
CUDA_GRAPHS = ('reduce-overhead', 'max-autotune')
#: Maximum number of graphs of one function; PyTorch's default of 8 is less than the number of shapes of a layer.
LARGEST_NUMBER_OF_GRAPHS = 64
#: Regions by class, with the dimensions of each positional argument whose sizes change from batch to batch: images,
#: samples, dates.
_REGIONS: dict[type[nn.Module], tuple[tuple[int, ...], ...]] = {
    DownBlock: ((0,),),
    EvaBlock: ((0,),),
    Expert: ((0,),),
    LabelHead: ((0,), (0,)),
    ModalityAttention: ((0,), (0,)),
    TemporalAttention: ((0, 1), (0, 1), (0, 1), (), (0, 1)),
    TokenHead: ((0,),),
    UnetDecoderBlock: ((0,), (), (), (0,)),
    WeightedSums: ((0,), (0,), (0,), (0,), (0, 1)),
}
#: Children of a class that are regions, although their own classes are not. Their first argument has images.
_CHILDREN: dict[type[nn.Module], tuple[str, ...]] = {
    UTAEEncoder: ('in_conv',),
    ImageEncoder: ('backbone',),
}


def compile_regions(model: nn.Module, backend: Any = None, mode: Mode | None = None) -> list[str]:
    """Compile the regions of a model in place; names of parameters do not change.

    Args:
        model: Model with modules of this package; others are not compiled.
        backend: Backend of :func:`torch.compile`; None for :data:`BACKEND`.
        mode: Mode of :func:`torch.compile`; None for its default. Those in :data:`CUDA_GRAPHS` require
            :func:`torch.compiler.cudagraph_mark_step_begin` before each batch.

    Returns:
        Names of the regions.
    """
    config: Any = torch._dynamo.config
    name = 'recompile_limit' if hasattr(config, 'recompile_limit') else 'cache_size_limit'
    setattr(config, name, max(getattr(config, name), LARGEST_NUMBER_OF_GRAPHS))
    names = []
    for path, module, varying in regions(model):
        if module._compiled_call_impl is None:
            module.compile(backend=backend or BACKEND, mode=mode)
            module._compiled_call_impl = _Marked(module._compiled_call_impl, varying)
        names.append(path)
    return names


def regions(model: nn.Module, path: str = '') -> Iterator[tuple[str, nn.Module, tuple[tuple[int, ...], ...]]]:
    """Return the name of each region, its module, and the varying dimensions of its arguments."""
    own = tuple(name for kind, names in _CHILDREN.items() if isinstance(model, kind) for name in names)
    for name, child in model.named_children():
        place = f'{path}.{name}' if path else name
        varying = next((dims for kind, dims in _REGIONS.items() if isinstance(child, kind)), None)
        if name in own:
            varying = ((0,),)
        if varying is not None:
            yield place, child, varying
        else:
            yield from regions(child, place)


def require_compiler(device: torch.device) -> None:
    """Check that the compiler of a device is installed.

    Raises:
        RuntimeError: If ``torch.compile`` cannot work on this device.
    """
    if device.type == 'cuda' and find_spec('triton') is None:
        raise RuntimeError("compile is true, but the package 'triton' is not installed: install it, or omit compile")
    if device.type == 'cpu':
        variable, default = 'CXX', {'darwin': 'clang++', 'win32': 'cl'}.get(sys.platform, 'g++')
        command = os.environ.get(variable, default)
        # Inductor takes a command of several words, such as 'ccache g++'.
        program = command if sys.platform == 'win32' else next(iter(shlex.split(command)), default)
    elif device.type == 'cuda':
        variable = 'CC'
        program = os.environ.get(variable) or next(filter(shutil.which, ('gcc', 'clang')), 'gcc')  # as Triton
    else:
        return
    if shutil.which(program) is None:
        raise RuntimeError(
            f'compile is true, but there is no compiler {program!r}, which torch.compile runs on {device.type}: '
            f'install it, set {variable} to another one, or omit compile'
        )


class _Marked:
    """Compiled function that marks the varying dimensions of its arguments, so that one graph serves all sizes."""

    def __init__(self, function: Any, varying: tuple[tuple[int, ...], ...]) -> None:
        self.function, self.varying = function, varying

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            for value, dims in zip(args, self.varying, strict=False):
                for x in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(x, Tensor):
                        for dim in dims:
                            torch._dynamo.maybe_mark_dynamic(x, dim)
        return self.function(*args, **kwargs)
