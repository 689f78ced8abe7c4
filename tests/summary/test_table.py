"""Folding, tables, and what stands on the screen."""

import csv
import io

import pytest
import torch
from rich.console import Console
from torch import nn

from ptools.errors import UsageError
from ptools.summary import summarize
from ptools.summary.diff import diff_table, render_diff
from ptools.summary.export import csv_text, markdown
from ptools.summary.fold import fold
from ptools.summary.render import render
from ptools.summary.table import human_count, shape_text, table_of


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    def __init__(self, depth=4, width=8):
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.spare = nn.Linear(2, 2)
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


IDS = torch.zeros(1, 5, dtype=torch.long)
BLOCK = (8 * 16 + 16) + (16 * 8 + 8)


@pytest.fixture(scope="module")
def summary():
    return summarize(Net, IDS)


def screen(renderable, width=200):
    console = Console(width=width, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def column(table, name):
    return [row[table.columns.index(name)] for row in table.rows]


def test_equal_layers_fold_into_one_row_with_their_sum(summary):
    table = table_of(summary)
    assert column(table, "layer") == [
        "Net", "  embed", "  layers.0-3", "    up", "    down", "  spare", "  head",
    ]  # fmt: skip
    row = table.rows[2]
    assert row[1] == "Block x4"
    assert f"{4 * BLOCK:,}" in row
    assert table.note


def test_unequal_layers_do_not_fold():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5), nn.Linear(5, 5))
    labels = [group.label for group in fold(summarize(model, torch.empty(1, 4)).layers).children]
    assert labels == ["0-1", "2", "3"]


def test_equal_layers_of_other_names_do_not_fold():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.k_proj = nn.Linear(4, 4)
            self.v_proj = nn.Linear(4, 4)

        def forward(self, x):
            return self.k_proj(x) + self.v_proj(x)

    labels = [g.label for g in fold(summarize(Attention(), torch.empty(1, 4)).layers).children]
    assert labels == ["k_proj", "v_proj"]


def test_remarks(summary):
    types = dict(
        zip(column(table_of(summary), "layer"), column(table_of(summary), "type"), strict=True)
    )
    assert types["  head"] == "Linear (tied: weight = embed.weight)"
    assert types["  spare"] == "Linear (not called)"


@pytest.mark.parametrize(("depth", "rows"), [(0, 1), (1, 5), (2, 7), (None, 7)])
def test_depth(summary, depth, rows):
    assert len(table_of(summary, depth=depth).rows) == rows


def test_sort_puts_the_costliest_layer_first(summary):
    table = table_of(summary, sort="macs")
    assert column(table, "layer")[0] == "layers.0.up"
    assert column(table_of(summary, sort="parameters"), "layer")[0].startswith("layers.")
    with pytest.raises(UsageError, match="--train"):
        table_of(summary, sort="activations")


def test_shares_are_of_the_whole(summary):
    table = table_of(summary, depth=1)
    assert table.shares[0] == 1
    assert sum(table.shares[1:]) == pytest.approx(1)


def test_by_type_operation_and_line(summary):
    by_type = table_of(summary, "type")
    assert column(by_type, "type")[0] == "Linear"
    assert column(by_type, "layers")[0] == "10"
    by_op = table_of(summary, "op")
    assert column(by_op, "operation")[0] == "addmm"
    assert column(by_op, "calls")[0] == "8"
    by_line = table_of(summary, "line")
    assert "return self.head(x)" in column(by_line, "code")


def test_csv_has_every_layer_in_full(summary):
    rows = list(csv.DictReader(io.StringIO(csv_text(summary))))
    assert len(rows) == len(summary.layers)
    assert int(rows[0]["macs"]) == summary.macs
    by_path = {row["path"]: row for row in rows}
    assert by_path["layers.2.up"]["outputs"] == "1x5x16"
    assert by_path["head"]["tied"] == "weight = embed.weight"
    for by in ("type", "op", "line"):
        assert len(list(csv.reader(io.StringIO(csv_text(summary, by))))) > 2


def test_markdown_is_a_table(summary):
    lines = markdown(table_of(summary)).splitlines()
    assert lines[0].startswith("| layer | type | output | params | MACs |")
    assert set(lines[1]) <= set("|-: ")
    assert len({line.count("|") for line in lines}) == 1


def test_the_verdict_is_the_last_line(summary):
    text = screen(render(summary))
    assert text.splitlines()[-1].startswith(f"Net: {(80 + 4 * BLOCK + 6) / 1000:.3f} K parameters")
    assert "[" not in text.splitlines()[-1]


def test_what_is_not_counted_is_on_the_screen():
    class Spectral(nn.Linear):
        def forward(self, x):
            return torch.fft.rfft(super().forward(x)).real

    text = screen(render(summarize(Spectral(4, 4), torch.empty(1, 4))))
    assert "NOT COUNTED  aten::_fft_r2c x1" in text
    assert "at least" in text.splitlines()[-1]


def test_a_guess_is_on_the_screen():
    text = screen(render(summarize(nn.Linear(4, 4))))
    assert "guessed" in text
    assert "--input" in text.splitlines()[-1]


def test_training_is_on_the_screen():
    text = screen(render(summarize(Net, IDS, train=True, fit=10**9)))
    for word in (
        "peak",
        "gradients",
        "adamw state",
        "activations",
        "CUDA context",
        "largest batch",
    ):
        assert word in text


def test_nothing_is_lost_on_a_narrow_screen(summary):
    narrow = screen(render(summary), width=60)
    joined = "".join(narrow.split())
    assert "".join("embed.weight".split()) in joined
    assert "…" not in narrow


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (7, "7"), (999, "999"), (1000, "1.000 K"), (4_089_184_256, "4.089 G"),
     (999_999, "1.000 M"), (12_345, "12.35 K"), (147_837_069_295_616, "147.8 T")],
)  # fmt: skip
def test_human_count(count, text):
    assert human_count(count) == text
    assert human_count(4_089_184_256, "MACs") == "4.089 GMACs"
    assert human_count(3, "MACs") == "3 MACs"


def test_shape_text():
    assert shape_text([(1, 3, 4), ()]) == "1x3x4, scalar"


class TestDiff:
    def test_rows_are_matched_by_name_whatever_their_numbers(self, summary):
        other = summarize(lambda: Net(depth=6), IDS)
        table = diff_table(summary, other)
        rows = {row[0].strip(): row for row in table.rows}
        row = rows["layers.0-3 | layers.0-5"]
        assert row[1] == "Block x4 | Block x6"
        assert row[4] == "x1.5"
        assert table.dim[[r[0].strip() for r in table.rows].index("embed")]

    def test_a_layer_of_one_side_only(self):
        left = summarize(nn.Sequential(nn.Linear(4, 4)), torch.empty(1, 4))
        right = summarize(
            nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.empty(1, 4)
        )
        table = diff_table(left, right)
        assert "only right" in table.rows[-1]

    def test_the_verdict(self, summary):
        other = summarize(lambda: Net(depth=6), IDS)
        last = screen(render_diff(summary, other)).rstrip().splitlines()[-1]
        ratio = other.parameters / summary.parameters
        assert f"x{ratio:.3g} the parameters" in last

    def test_parameters_only(self):
        left, right = summarize(nn.Bilinear(2, 2, 2)), summarize(nn.Bilinear(2, 2, 3))
        assert "MACs" not in screen(render_diff(left, right))


def test_sorted_layers_show_their_own_cost_and_add_up():
    """A container with operations of its own does not repeat those of the layers in it."""

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 8)
            self.weight = nn.Parameter(torch.empty(8, 2))

        def forward(self, x):
            return self.inner(x) @ self.weight

    table = table_of(summarize(Both(), torch.empty(3, 4)), sort="macs")
    assert column(table, "layer") == ["inner", "Both"]
    assert column(table, "MACs") == ["96", "48"]
    assert column(table, "params") == ["40", "16"]
    assert sum(table.shares) == pytest.approx(1)
