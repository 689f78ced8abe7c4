"""A loader that decodes, blurs and flips pictures: which of the three holds it back?

ptools profile-loader examples/profile_loader.py --step-ms 50 --budget 3
ptools profile-loader examples/profile_loader.py:make_loader --budget 3
python examples/profile_loader.py
"""

from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset

import ptools

SIZE = 64


def cosines() -> torch.Tensor:
    """The 8x8 cosine transform of JPEG."""
    k, n = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    return torch.cos(torch.pi * (2 * n + 1) * k / 16) / 2


class Blur:
    """A Gaussian blur, with a kernel that is not separated as it could be."""

    def __init__(self, width: int = 13) -> None:
        x = torch.arange(width) - width // 2
        line = torch.exp(-(x**2) / 8)
        kernel = torch.outer(line, line)
        self.kernel = (kernel / kernel.sum()).expand(3, 1, -1, -1)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.conv2d(image[None], self.kernel, padding="same", groups=3)[0]


class Flip:
    """Left and right, one time in two."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image.flip(-1) if torch.rand(()) < 0.5 else image


class Compose:
    """One transform after the other."""

    def __init__(self, *transforms: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        for transform in self.transforms:
            image = transform(image)
        return image


class Pictures(Dataset[torch.Tensor]):
    """Pictures that lie in memory as the coefficients of their 8x8 blocks."""

    def __init__(self, count: int = 256) -> None:
        generator = torch.Generator().manual_seed(0)
        blocks = SIZE // 8
        self.coefficients = torch.randn(count, 3, blocks, blocks, 8, 8, generator=generator)
        self.cosines = cosines()
        self.transform = Compose(Blur(), Flip())

    def __len__(self) -> int:
        return len(self.coefficients)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = self.cosines.T @ self.coefficients[index] @ self.cosines
        return self.transform(pixels.permute(0, 1, 3, 2, 4).reshape(3, SIZE, SIZE))


def make_loader(batch_size: int = 32) -> DataLoader[torch.Tensor]:
    """What a training would iterate."""
    return DataLoader(Pictures(), batch_size=batch_size, shuffle=True, num_workers=1)


loader = make_loader()

if __name__ == "__main__":
    profile = ptools.profile_loader(loader, budget=3)
    print(f"{profile.current.rate:.0f} samples/s now")
    for stage in profile.stages:
        print(f"{stage.name}: {1e3 * stage.run:.2f} ms a sample")
