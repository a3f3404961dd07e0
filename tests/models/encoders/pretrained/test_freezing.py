# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Frozen modules of encoders."""

import copy

import torch
from torch import nn

from torchgeo_omnisat.models.encoders.pretrained.freezing import FreezableEncoder


class Encoder(FreezableEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
        self.head = nn.Dropout()


def test_frozen_modules_stay_in_evaluation_mode() -> None:
    encoder = Encoder()
    encoder.freeze_modules('body', but=('body.2',))
    assert [name for name, p in encoder.named_parameters() if p.requires_grad] == ['body.2.0.weight', 'body.2.0.bias']
    for mode in (True, False, True):
        trained = copy.deepcopy(encoder).train(mode)
        assert not trained.body.training
        assert not trained.body[1].training
        assert trained.body[2].training == trained.body[2][1].training == trained.head.training == mode
        assert torch.equal(trained.body[1](torch.ones(8)), torch.ones(8))


def test_nothing_is_frozen_by_default() -> None:
    encoder = Encoder().eval().train()
    assert all(module.training for module in encoder.modules())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert encoder.state_dict().keys() == {'body.0.weight', 'body.0.bias', 'body.2.0.weight', 'body.2.0.bias'}
