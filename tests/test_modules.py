"""The names of modules, and that to watch them changes nothing."""

import torch
from torch import nn

from ptools.program.modules import Modules


def test_a_model_compiles_in_one_graph_while_modules_are_watched() -> None:
    torch._dynamo.reset()
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    modules = Modules()
    x = torch.ones(2, 4)
    with modules.watching():
        assert torch.equal(compiled(x), net(x))
        assert net in modules.roots() and modules.current() is None
    assert torch.equal(compiled(x), net(x))
