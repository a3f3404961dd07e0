"""Compare a compiled model with itself; run by ``test_compile.py``."""

import torch

from torchgeo_omnisat.models import OmniSatSegmenter, omnisat_tiny

from .conftest import MODALITIES, random_batch


def marked(batch):
    """The batch, its numbers of dates free to change."""
    for modality in MODALITIES.values():
        for key in modality.keys if modality.temporal else ():
            torch._dynamo.mark_dynamic(batch[key], 1)
    return batch


def main():
    """Trace without a break, then call with other numbers of dates: no second graph."""
    torch.manual_seed(0)
    backbone = omnisat_tiny(MODALITIES, patch_size=40.0, widths=(16, 16), image_widths=(16, 16, 16, 16))
    model = OmniSatSegmenter(backbone, num_classes=3)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    compiled(marked(random_batch(lengths=(8, 7))))
    with torch.compiler.set_stance('fail_on_recompile'):
        for lengths in ((12, 9), (9, 10)):
            batch, gradients = random_batch(lengths=lengths), []
            for call in (model, compiled):
                logits = call(batch)
                gradients.append(
                    torch.autograd.grad(logits.square().mean(), list(model.parameters()), materialize_grads=True)
                )
                torch.testing.assert_close(logits, model(batch), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)
