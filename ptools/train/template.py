"""Train a small ResNet on images by class: a folder for each class, or an LMDB of such folders.

python train.py --epochs 60
ptools launch --gpus cpu -n 2 train.py
python train.py --resume
"""

import argparse
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, SequentialLR
from torch.utils.data import Dataset, Subset

from ptools import LMDBImageFolder, train

DATA = "examples/shapes"
OUT = Path("runs", Path(__file__).stem)


def pixels(image: Image.Image) -> torch.Tensor:
    """3 x 64 x 64 floats of 0 to 1."""
    array = numpy.asarray(image.convert("RGB").resize((64, 64)))
    return torch.tensor(array).permute(2, 0, 1) / 255


class Folder(Dataset[tuple[torch.Tensor, int]]):
    """The images in ROOT/CLASS, each with the number of its class."""

    def __init__(self, root: str) -> None:
        self.classes = sorted(path.name for path in Path(root).iterdir() if path.is_dir())
        self.files = [file for name in self.classes for file in sorted(Path(root, name).iterdir())]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        file = self.files[index]
        return pixels(Image.open(file)), self.classes.index(file.parent.name)


def augmented(x: torch.Tensor) -> torch.Tensor:
    """Another part of the images in each batch, mirrored one time in two."""
    side = int(torch.randint(45, 65, ()))
    top, left = torch.randint(65 - side, (2,)).tolist()
    x = F.interpolate(x[..., top : top + side, left : left + side], 64, mode="bilinear")
    return x.flip(3) if torch.rand(()) < 0.5 else x


class Residual(nn.Module):
    """Layers, and a way around them (He et al., https://arxiv.org/abs/1512.03385)."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.inner(x))


def conv(inputs: int, outputs: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)]


def resnet(classes: int) -> nn.Module:
    layers: list[nn.Module] = [nn.InstanceNorm2d(3, eps=1e-3)]  # whatever the light
    for inputs, width in (3, 16), (16, 32), (32, 64):
        layers += [*conv(inputs, width, 2), nn.ReLU()]
        layers += [Residual(*conv(width, width), nn.ReLU(), *conv(width, width))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes))


def main(args: argparse.Namespace) -> None:
    with train.session(seed=0, amp=args.amp) as s:
        # The same in one process or many: each has its share of the images, and all step together.
        packed = Path(args.data).suffix == ".lmdb"
        images = LMDBImageFolder(args.data, pixels) if packed else Folder(args.data)
        held_out = range(3, len(images), 4)  # a quarter: images come class by class
        rest = [index for index in range(len(images)) if index not in held_out]
        loader = s.loader(Subset(images, rest), args.batch_size, shuffle=True)
        test = s.loader(Subset(images, held_out), args.batch_size, train=False)
        model = s.model(resnet(len(images.classes)))
        optimizer = torch.optim.SGD(model.parameters(), s.scale_lr(args.lr), momentum=0.9)
        # The rate rises to lr times the number of processes, then falls as a cosine.
        steps = args.epochs * len(loader)
        rising = train.warmup(optimizer, steps // 10, start=0.1)
        falling = CosineAnnealingLR(optimizer, steps - steps // 10)
        schedule = SequentialLR(optimizer, [rising, falling], [steps // 10])
        step = s.stepper(model, optimizer, loader, clip=1.0)
        log = train.Log(OUT, s.is_main)
        parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "log": log}
        if args.resume:
            s.load(OUT / "last.ckpt", **parts)
        for epoch in range(loader.epoch, args.epochs):
            total = torch.zeros((), device=s.device)
            for x, y in loader:
                with step:  # autocast; the backward is outside
                    loss = F.cross_entropy(model(augmented(x)).float(), y)
                step(loss)
                schedule.step()
                total += loss.detach()
            with s.evaluating(model) as net:  # each image once, in one of the processes
                right = sum(int((net(x).argmax(1) == y).sum()) for x, y in test)
            mean, accuracy = s.mean(total / len(loader)), sum(s.gather(right)) / len(held_out)
            s.print(f"epoch {epoch}: loss {mean:.6f}, accuracy {accuracy:.1%} of held-out images")
            log(epoch, loss=mean, accuracy=accuracy, lr=schedule.get_last_lr()[0])
            s.save(OUT / "last.ckpt", **parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=DATA)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--amp", choices=["bf16", "fp16", "no"])
    parser.add_argument("--resume", action="store_true")
    main(parser.parse_args())
