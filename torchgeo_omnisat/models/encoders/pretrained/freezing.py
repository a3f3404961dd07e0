# Copyright (c) torchgeo_omnisat contributors. All rights reserved.
# Licensed under the MIT License.

"""Base class of encoders whose pre-trained modules can be frozen."""

from torch import nn

from ..registry import Origin


class FreezableEncoder(nn.Module):
    """Base class of encoders whose pre-trained modules can be frozen.

    A frozen module is not trained and stays in evaluation mode, without dropout.
    """

    #: Description of the weights; None for weights from elsewhere.
    origin: Origin | None = None
    #: Names of the frozen modules, and of modules inside them that are trained.
    frozen: tuple[str, ...] = ()
    unfrozen: tuple[str, ...] = ()

    def freeze_modules(self, *names: str, but: tuple[str, ...] = ()) -> None:
        """Freeze modules.

        Args:
            *names: Names of modules of the encoder.
            but: Names of modules inside them that are trained.
        """
        self.frozen, self.unfrozen = names, but
        for name in names:
            self.get_submodule(name).requires_grad_(False).eval()
        for name in but:
            self.get_submodule(name).requires_grad_(True).train(self.training)

    def train(self, mode: bool = True) -> 'FreezableEncoder':
        """Set the mode; frozen modules stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        for name in self.unfrozen:
            self.get_submodule(name).train(mode)
        return self
