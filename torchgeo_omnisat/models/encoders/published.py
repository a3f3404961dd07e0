# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Names of parameters and arguments in the published code, and ours for them."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

#: Regular expressions that rename U-TAE's parameters, in order.
UTAE_NAMES = {
    r'^in_conv\.conv\.conv\.([01])\.': r'encoder.in_conv.0.\1.',
    r'^in_conv\.conv\.conv\.3\.': 'encoder.in_conv.1.0.',
    r'^in_conv\.conv\.conv\.4\.': 'encoder.in_conv.1.1.',
    r'^down_blocks\.(\d+)\.(\w+)\.conv\.': r'encoder.down_blocks.\1.\2.',
    r'^up_blocks\.(\d+)\.skip_conv\.': r'up_blocks.\1.skip.',
    r'^up_blocks\.(\d+)\.(conv\d)\.conv\.': r'up_blocks.\1.\2.',
    r'^out_conv\.conv\.conv\.([01])\.': r'head.0.\1.',
    r'^out_conv\.conv\.conv\.3\.': 'head.1.0.',
    r'^out_conv\.conv\.conv\.4\.': 'head.1.1.',
    r'^temporal_encoder\.inconv\.': 'encoder.temporal.in_proj.',
    r'^temporal_encoder\.mlp\.([01])\.': r'encoder.temporal.mlp.0.\1.',
    r'^temporal_encoder\.': 'encoder.temporal.',
    r'\.attention_heads\.Q$': '.heads.query',
    r'\.attention_heads\.fc1_k\.': '.heads.key.',
}

#: U-TAE's arguments under our names.
UTAE_ARGUMENTS = {
    'input_dim': 'in_channels',
    'encoder_widths': 'widths',
    'decoder_widths': 'decoder_widths',
    'out_conv': 'out_conv',
    'n_head': 'num_heads',
    'd_model': 'dim',
    'd_k': 'key_dim',
}

#: U-TAE's arguments with only one supported value; ``None`` if the value has no effect.
UTAE_FIXED: dict[str, tuple[Any, ...] | None] = {
    'str_conv_k': (4,),
    'str_conv_s': (2,),
    'str_conv_p': (1,),
    'agg_mode': ('att_group',),
    'encoder_norm': ('group',),
    'padding_mode': ('reflect',),
    'encoder': (False,),
    'return_maps': None,
    'pad_value': None,
}

#: The same for OmniSat's time series encoder.
SERIES_NAMES = {
    r'^inconv\.([01])\.': r'embed.0.\1.',
    r'^inconv\.4\.': 'embed.1.0.',
    r'^inconv\.5\.': 'embed.1.1.',
    r'^inconv\.8\.': 'embed.2.0.',
    r'^inconv\.9\.': 'embed.2.1.',
    r'^mlp\.([01])\.': r'temporal.mlp.0.\1.',
    r'^mlp\.3\.': 'temporal.mlp.1.0.',
    r'^mlp\.4\.': 'temporal.mlp.1.1.',
    r'^mlp\.6\.': 'temporal.mlp.2.0.',
    r'^mlp\.7\.': 'temporal.mlp.2.1.',
    r'^attention_heads\.Q$': 'temporal.heads.query',
    r'^attention_heads\.fc1_k\.': 'temporal.heads.key.',
    r'^(in_norm|out_norm)\.': r'temporal.\1.',
}
SERIES_ARGUMENTS = {
    'in_channels': 'in_channels',
    'patch_size': 'patch_size',
    'mlp_in': 'mlp_in',
    'mlp': 'mlp',
    'n_head': 'num_heads',
    'd_k': 'key_dim',
    'in_norm': 'in_norm',
    'dropout': 'dropout',
    'T': 'period',
}
SERIES_FIXED: dict[str, tuple[Any, ...] | None] = {'positional_encoding': (True,), 'return_att': None}

#: The same for OmniSat's image encoder.
IMAGE_NAMES = {r'^proj\.': 'layers.', r'\.bn\.': '.norm.'}
IMAGE_ARGUMENTS = {
    'in_chans': 'in_channels',
    'patch_size': 'patch_size',
    'embed_dim': 'dim',
    'gp_norm': 'groups',
    'bias': 'bias',
}
IMAGE_FIXED: dict[str, tuple[Any, ...] | None] = {'res': (True,)}


def published_arguments(
    model: str, ctor: Mapping[str, Any], names: Mapping[str, str], fixed: Mapping[str, tuple[Any, ...] | None]
) -> dict[str, Any]:
    """Return the arguments of a published constructor under our names.

    Args:
        model: Name of the model in errors.
        ctor: Published arguments.
        names: Our name by published name.
        fixed: Supported values, or ``None`` if the value has no effect.

    Raises:
        ValueError: If an argument is unknown, or its value is not supported.
    """
    for key, value in ctor.items():
        if key not in names and key not in fixed:
            raise ValueError(f'{model} has no argument {key!r}, expected some of {sorted({*names, *fixed})}')
        supported = fixed.get(key)
        if supported is not None and value not in supported:
            raise ValueError(f'{key}={value!r} of {model} is not supported, expected {supported[0]!r}')
    return {names[key]: value for key, value in ctor.items() if key in names}


def renamed(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return parameters under our names; a convolution over one date becomes a linear map."""
    result = {}
    for key, value in state_dict.items():
        for pattern, replacement in names.items():
            key = re.sub(pattern, replacement, key)
        result[key] = value.squeeze(-1) if value.ndim == 3 else value
    return result
