"""Batches of any form as trials."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from ptools.errors import UsageError
from ptools.fusion.data import batches_of

IMAGES = torch.randn(40, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40)


class One(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, image: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.conv(image) * scale


class Two(One):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.conv(left) + self.conv(right)


class Bag(One):
    def forward(self, image: list[torch.Tensor]) -> torch.Tensor:  # type: ignore[override]
        assert isinstance(image, list)
        return torch.stack([self.conv(item) for item in image])


def shapes(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else value


def test_a_dataset_of_pairs_is_batched_and_its_labels_left_out() -> None:
    trials = batches_of(TensorDataset(IMAGES, LABELS), One())
    assert [shapes(trial.args[0]) for trial in trials] == [(32, 3, 4, 4), (8, 3, 4, 4)]
    assert all(len(trial.args) == 1 and not trial.kwargs for trial in trials)
    assert torch.equal(torch.cat([trial.args[0] for trial in trials]), IMAGES)


def test_no_more_batches_are_taken_than_asked_for() -> None:
    taken: list[int] = []

    def endless() -> Iterator[torch.Tensor]:
        while True:
            taken.append(1)
            yield IMAGES[:2]

    assert len(batches_of(endless(), One(), limit=3)) == 3
    assert len(taken) == 3


@pytest.mark.parametrize(
    ("model", "batch", "args", "names"),
    [
        (One(), IMAGES[:2], 1, []),
        (One(), (IMAGES[:2], LABELS[:2]), 1, []),
        (One(), [IMAGES[:2], LABELS[:2]], 1, []),
        (One(), {"image": IMAGES[:2], "label": LABELS[:2]}, 0, ["image"]),
        (One(), {"label": LABELS[:2], "pixels": IMAGES[:2]}, 1, []),
        (One(), ({"image": IMAGES[:2]}, LABELS[:2]), 0, ["image"]),
        (Two(), (IMAGES[:2], IMAGES[2:4]), 2, []),
        (Two(), (IMAGES[:2], IMAGES[2:4], LABELS[:2]), 2, []),
        (Two(), ((IMAGES[:2], IMAGES[2:4]), LABELS[:2]), 2, []),
        (Two(), {"left": IMAGES[:2], "right": IMAGES[2:4], "y": 1}, 0, ["left", "right"]),
        (Bag(), [IMAGES[0], IMAGES[1]], 1, []),
    ],
)
def test_the_form_is_found_by_trying(
    model: nn.Module, batch: Any, args: int, names: list[str]
) -> None:
    [trial] = batches_of([batch], model)
    assert len(trial.args) == args
    assert list(trial.kwargs) == names
    trial.run(model)


def test_tensors_are_copied_in_the_dtype_of_the_model() -> None:
    images = IMAGES.double()
    [trial] = batches_of([images[:2]], One())
    assert trial.args[0].dtype == torch.float32
    [trial] = batches_of([IMAGES[:2]], One())
    trial.args[0].zero_()
    assert IMAGES[:2].abs().sum() > 0


def test_a_tensor_is_no_row_of_samples() -> None:
    assert [shapes(trial.args[0]) for trial in batches_of(IMAGES, One())] == [
        (32, 3, 4, 4),
        (8, 3, 4, 4),
    ]


def test_a_batch_that_does_not_fit_is_told_with_what_was_tried() -> None:
    with pytest.raises(UsageError) as caught:
        batches_of([(IMAGES[:2, :1], LABELS[:2])], One())
    assert "the forward takes (image)" in caught.value.message
    assert "2x1x4x4 float32, 2 int64" in caught.value.message
    assert "expected input" in (caught.value.hint or "")


def test_a_later_batch_that_fails_is_named() -> None:
    with pytest.raises(UsageError, match="batch 2 of the data"):
        batches_of([IMAGES[:2], IMAGES[:2, :1]], One())


def test_a_later_batch_of_another_form_is_named() -> None:
    with pytest.raises(UsageError, match=r"batch 2 of the data: .*another form"):
        batches_of([(IMAGES[:2], LABELS[:2]), IMAGES[:2]], One())


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        raise OSError("no such picture")


def test_data_that_fails_or_is_none_is_said_so() -> None:
    with pytest.raises(UsageError, match="no such picture"):
        batches_of(Broken(), One())
    with pytest.raises(UsageError, match="no batch"):
        batches_of([], One())
    with pytest.raises(UsageError, match="of type int and gives no batches"):
        batches_of(3, One())


def test_a_loader_is_taken_as_it_is() -> None:
    trials = batches_of(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=5), One(), limit=2)
    assert [shapes(trial.args[0]) for trial in trials] == [(5, 3, 4, 4)] * 2
