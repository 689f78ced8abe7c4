"""What is timed, seen from a forked process: `instrument` changes the one that it is called in."""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, Subset

from ptools.loader_profile import find, probe
from ptools.loader_profile.isolate import isolated

Counts = dict[tuple[str, str], float]  # calls by name and kind


def counts(dataset: Any, indices: range = range(2)) -> Counts:
    """The calls of each stage while these samples are fetched."""

    def fetch() -> Counts:
        find.instrument(dataset)
        for index in indices:
            dataset[index]
        return {key: values[0] for key, values in probe._here().stages.items()}

    return isolated(fetch, 30)


def transforms(dataset: Any, indices: range = range(2)) -> dict[str, float]:
    found = counts(dataset, indices)
    return {name: calls for (name, kind), calls in found.items() if kind == "transform"}


class Compose:
    def __init__(self, transforms: Any) -> None:
        self.transforms = transforms

    def __call__(self, value: Any) -> Any:
        for transform in self.transforms:
            value = transform(value)
        return value


class KeywordCompose(Compose):
    """As albumentations has it."""

    def __call__(self, **data: Any) -> Any:
        for transform in self.transforms:
            data = transform(**data)
        return data


class Flip:
    always = True

    def __call__(self, value: Any = None, **data: Any) -> Any:
        return data or value


class Blur(nn.Module):
    def forward(self, value: Any) -> Any:
        return value


def crop(value: Any, size: int = 3) -> Any:
    return value


class Images:
    def __init__(self, transform: Any, target_transform: Any = None) -> None:
        self.transform = transform
        self.target_transform = target_transform

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        label = self.target_transform(index) if self.target_transform else index
        return self.transform(torch.zeros(2)), label


@pytest.mark.parametrize(
    ("transform", "names"),
    [
        (Compose([Flip(), crop, Blur()]), ["Flip", "crop", "Blur"]),
        (Compose((Flip(), crop)), ["Flip", "crop"]),
        (Compose([Flip(), Compose([crop, Compose([Blur()])])]), ["Flip", "crop", "Blur"]),
        (nn.Sequential(Blur(), nn.ReLU()), ["Blur", "ReLU"]),
        (Compose(nn.ModuleList([Blur(), nn.ReLU()])), ["Blur", "ReLU"]),
        (Compose([functools.partial(crop, size=2)]), ["crop"]),
        (functools.partial(functools.partial(crop), size=2), ["crop"]),
        (Flip(), ["Flip"]),
        (crop, ["crop"]),
    ],
)
def test_each_transform_is_counted_by_its_name(transform: Any, names: list[str]) -> None:
    assert transforms(Images(transform)) == dict.fromkeys(names, 2)


def test_transforms_of_one_name_are_told_apart() -> None:
    found = transforms(Images(Compose([Flip(), Flip(), Flip()])))
    assert found == {"Flip": 2, "Flip #2": 2, "Flip #3": 2}


def test_a_transform_that_is_used_twice_is_counted_twice() -> None:
    flip = Flip()
    assert transforms(Images(Compose([flip, Blur(), flip]))) == {"Flip": 4, "Blur": 2}


def test_a_lambda_is_named_by_its_line() -> None:
    function = lambda value: value  # noqa: E731
    line = function.__code__.co_firstlineno
    assert transforms(Images(function)) == {f"lambda (test_find.py:{line})": 2}


def test_the_transform_of_the_target_is_one_too() -> None:
    assert transforms(Images(Compose([Flip()]), crop)) == {"Flip": 2, "crop": 2}


def test_a_transform_called_with_keywords_is_found() -> None:
    class Keywords(Images):
        def __getitem__(self, index: int) -> Any:
            return self.transform(image=torch.zeros(2))["image"]

    assert transforms(Keywords(KeywordCompose([Flip(), Flip()]))) == {"Flip": 2, "Flip #2": 2}


def test_a_timed_transform_still_is_what_it_was() -> None:
    timed = probe.Timed(("Flip", "transform"), Flip())
    assert isinstance(timed, Flip)
    assert timed.always
    assert isolated(lambda: timed(3), 10) == 3


def test_transforms_are_found_inside_of_other_datasets() -> None:
    inner = Images(Compose([Flip()])), Images(crop)
    both: Any = ConcatDataset(inner)  # type: ignore[arg-type]
    assert transforms(both, range(0, 8, 2)) == {"Flip": 2, "crop": 2}
    assert transforms(Subset(both, [0, 1, 5])) == {"Flip": 2}


def test_what_loads_or_samples_is_no_transform() -> None:
    dataset = Images(Flip())
    dataset.loader = dataset.sampler = dataset.collate_fn = crop  # type: ignore[attr-defined]
    dataset.kind = Flip  # type: ignore[attr-defined]
    assert list(transforms(dataset)) == ["Flip"]


def test_a_transform_that_raises_still_raises() -> None:
    def broken(value: Any) -> Any:
        raise ValueError("too small")

    with pytest.raises(Exception, match="too small"):
        counts(Images(Compose([broken])))


def test_torchvisions_pair_of_transforms(torchvision: Any) -> None:
    from torchvision.datasets import VisionDataset

    class Pairs(VisionDataset):
        def __getitem__(self, index: int) -> Any:
            return self.transforms(torch.zeros(2), index)  # type: ignore[misc]

    assert transforms(Pairs("", transform=Flip(), target_transform=crop)) == {
        "Flip": 2,
        "crop": 2,
    }
