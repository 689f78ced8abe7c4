"""On a GPU: nothing moves, nothing is allocated there, and the counts are the same."""

import pytest
import torch
from torch import nn

from ptools.summary import summarize

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def net():
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    return nn.Sequential(nn.Linear(16, 64), nn.TransformerEncoder(layer, 2), nn.Linear(64, 4))


def test_a_model_on_the_gpu_stays_there_and_counts_as_on_the_cpu():
    model, x = net().cuda(), torch.rand(2, 10, 16, device="cuda")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state, allocated = torch.cuda.get_rng_state(), torch.cuda.memory_allocated()
    summary = summarize(model, x, backward=True)
    assert torch.cuda.memory_allocated() == allocated
    assert torch.equal(state, torch.cuda.get_rng_state())
    for name, tensor in model.state_dict().items():
        assert tensor.device.type == "cuda"
        assert torch.equal(tensor, before[name])
    on_cpu = summarize(net(), torch.rand(2, 10, 16), backward=True)
    assert (summary.macs, summary.backward_macs) == (on_cpu.macs, on_cpu.backward_macs)
