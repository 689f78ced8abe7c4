"""Mode `autograd`: parameters that are not trained, and the line that is to blame."""

from typing import Any

import pytest

pytest.importorskip("torch")

HEAD = """
import copy
import torch
from torch import nn

def train(net, optimizer, steps=5, loss_of=lambda y: y.pow(2).mean(), shape=(6, 4)):
    for _ in range(steps):
        loss = loss_of(net(torch.randn(shape)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print(loss.item().hex())

def mlp(inputs=4, hidden=8, outputs=1):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
"""

ENCODER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(4, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        {code}

net = Net()
train(net, torch.optim.Adam(net.parameters()))
"""


@pytest.mark.parametrize(
    "code",
    [
        "return self.head(self.encoder(x).detach())  # <- cut",
        "return self.head(self.encoder(x).data)  # <- cut",
        "return self.head(torch.tensor(self.encoder(x)))  # <- cut",
        "return self.head(self.encoder(x).detach().clone() * 2)  # <- cut",
        "return self.head((self.encoder(x) > 0).float())  # <- cut",
        "h = torch.zeros(6, 8); h[:] = self.encoder(x).detach()  # <- cut\n"
        "        return self.head(h)",
        "with torch.no_grad():  # <- off\n"
        "            h = self.encoder(x)  # <- cut\n"
        "        return self.head(h)",
        "return self.head(torch.as_tensor(self.encoder(x).tolist()))  # <- cut",
    ],
)
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_the_line_that_cuts_the_graph_before_a_module_is_named(follow: Any, code: str) -> None:
    seen = follow(HEAD + ENCODER.format(code=code))
    assert seen.kinds == ["cut-graph"]
    assert seen.marked()
    assert "Net.encoder.weight, Net.encoder.bias" in seen.findings[0].facts[1]


@pytest.mark.parametrize(
    "code",
    [
        "loss = torch.tensor(net(x).mean().item())  # <- cut",
        "loss = net(x).argmax(1).float().mean()  # <- cut",
        "out = net(x).detach()  # <- cut\nloss = out.pow(2).mean()",
        "with torch.no_grad():  # <- off\n    out = net(x)  # <- cut\nloss = out.mean()",
        "out = net(x).mean()\nloss = torch.tensor([float(out)]).sum()  # <- cut",
        "value = net(x).mean().item() * 3  # <- cut\nloss = torch.tensor(value)",
    ],
)
@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_a_backward_that_fails_names_the_line_that_cut_the_loss_off(follow: Any, code: str) -> None:
    text = f"{HEAD}\nnet = mlp(4, 8, 3)\nx = torch.randn(6, 4)\n{code}\nloss.backward()  # <- seen"
    seen = follow(text, fails="does not require grad")
    assert seen.kinds == ["cut-graph"]
    assert seen.marked()


def test_a_loss_that_only_pretends_to_need_a_gradient_is_found(follow: Any) -> None:
    code = "lambda y: torch.tensor(y.mean().item(), requires_grad=True)  # <- cut\n"
    text = f"{HEAD}\nnet = mlp()\nloss_of = {code}"
    seen = follow(text + "train(net, torch.optim.SGD(net.parameters(), 0.1), loss_of=loss_of)")
    assert seen.kinds == ["cut-graph"]
    assert seen.marked()


LEFT_OUT = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 8)
        self.spare = nn.Linear(8, 8)  # <- made
        self.aux = nn.Linear(8, 2)
        self.head = nn.Linear(8, 1)

    def forward(self, x):
        h = self.body(x)
        self.extra = self.aux(h)  # <- used
        return self.head(h)

net = Net()
train(net, torch.optim.Adam(net.parameters()))
"""


def test_a_module_that_is_never_called_is_told_from_one_whose_output_is_not_used(
    follow: Any,
) -> None:
    seen = follow(HEAD + LEFT_OUT)
    assert seen.kinds == ["unused-parameter", "unreached-parameter"]
    assert seen.marked()
    unused, unreached = seen.findings
    assert "Net.spare.weight" in unused.summary
    assert "Net.aux.weight" in unreached.summary


def test_layers_in_a_plain_list_are_found_not_to_be_updated(follow: Any) -> None:
    text = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(4, 4) for _ in range(2)]  # <- made
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)  # <- used
        return self.head(x)

net = Net()
train(net, torch.optim.Adam(net.parameters()))
"""
    seen = follow(HEAD + text)
    assert seen.kinds == ["not-updated"]
    assert seen.marked()
    assert "ModuleList" in seen.findings[0].advice


def test_a_layer_made_after_the_optimizer_is_found_and_so_is_the_one_it_replaced(
    follow: Any,
) -> None:
    text = """
net = mlp()
optimizer = torch.optim.Adam(net.parameters())  # <- held
net[2] = nn.Linear(8, 2)  # <- made
train(net, optimizer)
"""
    seen = follow(HEAD + text)
    assert seen.kinds == ["orphan-parameter", "not-updated"]
    assert seen.marked()


def test_an_optimizer_that_was_made_for_another_copy_is_found(follow: Any) -> None:
    text = """
net = mlp()
optimizer = torch.optim.Adam(net.parameters())  # <- held
net = copy.deepcopy(net)
train(net, optimizer)
"""
    seen = follow(HEAD + text)
    assert seen.kinds == ["orphan-parameter"]
    assert seen.marked()
    assert "4 parameters" in seen.findings[0].summary


def test_a_dead_unit_is_found_by_its_gradient_of_zeros(follow: Any) -> None:
    text = """
net = mlp()
nn.init.constant_(net[0].bias, -100)
train(net, torch.optim.SGD(net.parameters(), 0.1), steps={steps})
"""
    seen = follow(HEAD + text.format(steps=5))
    assert seen.kinds == ["zero-gradient"]
    assert "Sequential.0.weight" in seen.findings[0].summary
    assert not follow(HEAD + text.format(steps=2)).findings


WRONG = """
net = mlp()
optimizer = torch.optim.SGD(net.parameters(), 0.01)
for _ in range(5):
    loss = net(torch.randn(6, 4)).pow(2).mean()
{calls}
"""


@pytest.mark.parametrize(
    ("calls", "kinds"),
    [
        ("    loss.backward()\n    optimizer.step()  # <- step", ["never-cleared"]),
        (
            "    loss.backward()\n    optimizer.zero_grad()  # <- cleared\n"
            "    optimizer.step()  # <- step",
            ["cleared-too-early"],
        ),
        (
            "    loss.backward()\n    optimizer.zero_grad(set_to_none=False)  # <- cleared\n"
            "    optimizer.step()  # <- step",
            ["cleared-too-early"],
        ),
        ("    optimizer.step()  # <- step", ["no-backward"]),
    ],
)
def test_calls_of_an_optimizer_in_the_wrong_order_are_found(
    follow: Any, calls: str, kinds: list[str]
) -> None:
    seen = follow(HEAD + WRONG.format(calls=calls))
    assert seen.kinds == kinds
    assert seen.marked()


def test_a_step_before_the_backward_and_training_in_eval_are_noted(follow: Any) -> None:
    text = """
net = nn.Sequential(nn.Linear(4, 1), nn.Dropout()).eval()
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(4):
    loss = net(torch.randn(6, 4)).pow(2).mean()
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
"""
    seen = follow(HEAD + text)
    assert not seen.findings
    assert len([note for note in seen.notes if "came before any backward" in note]) == 1
    assert len([note for note in seen.notes if "trained in eval()" in note]) == 1


CLEAN = {
    "a frozen backbone": "net = mlp()\nnet[0].requires_grad_(False)\n"
    "train(net, torch.optim.Adam(net.parameters()))",
    "a head on a backbone that no optimizer holds": "net = nn.Sequential(mlp(4, 8, 8), mlp(8))\n"
    "train(net, torch.optim.Adam(net[1][2].parameters()))",
    "lazy layers": "net = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 1))\n"
    "train(net, torch.optim.Adam(net.parameters()))",
    "a bias before a batch norm": "net = nn.Sequential(mlp(4, 8, 8), nn.BatchNorm1d(8))\n"
    "train(net, torch.optim.Adam(net.parameters()))",
    "an embedding with padding, whose rows are not all seen": """
net = nn.Sequential(nn.Embedding(20, 4, padding_idx=0), nn.Linear(4, 1))
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(5):
    optimizer.zero_grad()
    net(torch.randint(5, (3,))).pow(2).mean().backward()
    optimizer.step()
""",
    "tied weights": """
net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
net[2].weight = net[0].weight
train(net, torch.optim.Adam(net.parameters()))
""",
    "a perceptual loss with a network that nobody trains": """
net = mlp(4, 8, 4)
optimizer = torch.optim.Adam(net.parameters())
judge = mlp(4, 8, 3).eval()
train(net, optimizer, loss_of=lambda y: judge(y).pow(2).mean())
""",
    "experts without tokens": """
class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(4, 3)
        self.experts = nn.ModuleList(mlp(4, 8, 4) for _ in range(3))
        nn.init.constant_(self.gate.bias, -100)
        nn.init.zeros_(self.gate.bias[:2].data)

    def forward(self, x):
        weights, out = self.gate(x).softmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            mine = weights.argmax(-1) == i
            if mine.any():
                out[mine] = expert(x[mine]) * weights[mine, i, None]
        return out

net = Mixture()
train(net, torch.optim.Adam(net.parameters()))
""",
    "a copy that follows the weights, inside the model": """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.online = mlp(4, 8, 4)
        self.target = copy.deepcopy(self.online)

    def forward(self, x):
        with torch.no_grad():
            for mine, its in zip(self.target.parameters(), self.online.parameters()):
                mine.lerp_(its, 0.1)
            aim = self.target(x).roll(1, 0)
        return self.online(x) - aim

net = Net()
train(net, torch.optim.Adam(net.parameters()))
""",
    "a straight-through estimator": """
encoder, codes = mlp(4, 8, 3), nn.Embedding(7, 3)
optimizer = torch.optim.Adam([*encoder.parameters(), *codes.parameters()])
for _ in range(5):
    z = encoder(torch.randn(6, 4))
    q = codes(torch.cdist(z, codes.weight).argmin(1))
    passed = z + (q - z).detach()
    loss = passed.pow(2).mean() + (q - z.detach()).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
""",
    "two networks with two optimizers": """
made, judge = mlp(2, 8, 4), mlp()
one, two = torch.optim.Adam(made.parameters()), torch.optim.Adam(judge.parameters())
for _ in range(5):
    fake = made(torch.randn(6, 2))
    two.zero_grad()
    loss = judge(fake.detach()).mean() - judge(torch.randn(6, 4)).mean()
    loss.backward()
    two.step()
    one.zero_grad()
    loss = -judge(fake).mean()
    loss.backward()
    one.step()
    print(loss.item().hex())
""",
    "a transformer that is also tested": """
layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
net = nn.TransformerEncoder(layer, 2)
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(2):
    train(net.train(), optimizer, steps=3, shape=(2, 3, 8))
    with torch.no_grad():
        print(net.eval()(torch.ones(2, 3, 8)).sum().item().hex())
""",
    "gradients by torch.autograd.grad": """
net = mlp()
optimizer = torch.optim.SGD(net.parameters(), 0.1)
for _ in range(5):
    loss = net(torch.randn(6, 4)).pow(2).mean()
    for parameter, gradient in zip(
        net.parameters(), torch.autograd.grad(loss, list(net.parameters()))
    ):
        parameter.grad = gradient
    optimizer.step()
    print(loss.item().hex())
""",
    "an optimized image": """
net, image = mlp(4, 8, 3).eval(), torch.randn(2, 4, requires_grad=True)
optimizer = torch.optim.Adam([image])
for _ in range(5):
    loss = net(image).pow(2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(loss.item().hex())
""",
}


@pytest.mark.parametrize("kind", CLEAN)
def test_nothing_is_found_in_clean_scripts_and_their_losses_do_not_change(
    follow: Any, capsys: Any, kind: str
) -> None:
    import torch

    seen = follow(HEAD + CLEAN[kind])
    torch.manual_seed(0)
    exec(HEAD + CLEAN[kind], {})
    assert seen.kinds == []
    assert seen.printed == capsys.readouterr().out


def test_gradients_that_are_not_finite_are_not_passed_over(follow: Any) -> None:
    seen = follow(
        "import torch\n"
        "net = torch.nn.Linear(2, 1)\n"
        "optimizer = torch.optim.SGD(net.parameters(), 0.1)\n"
        "for step in range(3):\n"
        "    optimizer.zero_grad()\n"
        "    (net(torch.ones(1, 2)).sum() * float('nan')).backward()\n"
        "    optimizer.step()\n"
    )
    assert any("--mode nan" in note for note in seen.notes)
