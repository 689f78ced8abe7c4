"""`LMDBImageFolder`: torchvision's ImageFolder, out of a packed set."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from torch.utils.data import Dataset

from ptools.errors import UsageError
from ptools.image_lmdb.database import Images, Stored, open_images
from ptools.image_lmdb.decode import Loader, find_loader

Item = tuple[Any, Any]


class LMDBImageFolder(Dataset[Item]):
    """A packed set as a dataset: the items, attributes and arguments of `ImageFolder`.

    Args:
        path: the set, one of its files, or a foreign LMDB (see `open_foreign`).
        transform: applied to each image.
        target_transform: applied to each class number.
        loader: `"pil"` gives what ImageFolder gives, `"array"` the same pixels as an H x W x 3
            array of uint8 and faster; or a function of the file's bytes.
        class_to_idx: class numbers to use, by name, such as those of a training set.

    A `DataLoader` fetches a whole batch at once. Memory is the same for any number of images until
    `targets` is used; paths are read as they are asked for. Works with any way to start workers,
    any number of readers, and read-only files.

    Raises:
        NotADatabase: there is nothing that can be read.
        DamagedDatabase: a file is missing or cut short, or, on reading an image, its bytes are not
            what was packed.
        UsageError: `class_to_idx` lacks a class.
        OSError: an image cannot be decoded.

        dataset = LMDBImageFolder("imgs.lmdb", transform=transform)
        image, target = dataset[0]
    """

    def __init__(
        self,
        path: str | Path,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[int], Any] | None = None,
        loader: Loader = "pil",
        class_to_idx: Mapping[str, int] | None = None,
    ) -> None:
        self.root = str(path)
        self.transform = transform
        self.target_transform = target_transform
        self.loader = find_loader(loader)
        self._images = open_images(path)
        names = self._images.classes
        if class_to_idx is None:
            class_to_idx = {name: number for number, name in enumerate(names)}
        self.class_to_idx = dict(class_to_idx)
        self.classes = sorted(self.class_to_idx, key=self.class_to_idx.__getitem__)
        self._numbers = _numbers(names, self.class_to_idx, self.root)
        self.samples = Samples(self._images, self._numbers)
        self.imgs = self.samples

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Item:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """A batch: a DataLoader calls this."""
        stored = self._images.fetch(indices)
        return [self._item(index, one) for index, one in zip(indices, stored, strict=True)]

    def _item(self, index: int, stored: Stored) -> Item:
        try:
            image = self.loader(stored.data)
        except OSError as error:  # what PIL raises
            raise OSError(f"{self._place(index)}: {error}") from error
        except Exception as error:
            error.add_note(self._place(index))
            raise
        target: Any = self._numbers[stored.label]
        if self.transform is not None:
            image = self.transform(image)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return image, target

    def _place(self, index: int) -> str:
        return f"{self.root}: image {index} ({self._images.path_of(index)!r})"

    @cached_property
    def targets(self) -> list[int]:
        """The class number of every image."""
        return [self._numbers[label] for label in self._images.labels()]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "targets"}

    def __repr__(self) -> str:
        lines = [
            "Dataset LMDBImageFolder",
            f"    Number of datapoints: {len(self)}",
            f"    Root location: {self.root}",
            *(f"    Transform: {self.transform}" for _ in range(self.transform is not None)),
        ]
        return "\n".join(lines)


class Samples(Sequence[tuple[str, int]]):
    """(path, class number) of every image, read as they are asked for."""

    def __init__(self, images: Images, numbers: Sequence[int]) -> None:
        self._images = images
        self._numbers = numbers

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, int]]: ...
    def __getitem__(self, index: int | slice) -> tuple[str, int] | list[tuple[str, int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._images.path_of(index), self._numbers[self._images.label_of(index)]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        numbers = (self._numbers[label] for label in self._images.labels())
        return zip(self._images.paths(), numbers, strict=True)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def _numbers(names: Sequence[str], class_to_idx: Mapping[str, int], root: str) -> Sequence[int]:
    missing = [name for name in names if name not in class_to_idx]
    if missing:
        raise UsageError(
            f"class_to_idx has no number for {', '.join(map(repr, missing[:3]))} of {root}",
            hint="give one for every class of the set",
        )
    return [class_to_idx[name] for name in names]
