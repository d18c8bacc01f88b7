"""How much of a training step is the method's own work? Ratios from one run on this machine.

    python benchmarks/training.py [--images 2048] [--batch 128] [--repeats 5]

Bare step: a ResNet-8 on ready-made float tensors (forward, backward, SGD). `fit`: the same network with batched views (crop, flip, jitter, cutout)
drawn from uint8 images. Loader: torchvision's per-image PIL transforms in a DataLoader with 2 workers, without any training.
"""
import argparse, statistics, time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from arcbook.datasets import ImageSet
from arcbook.models import Network
from arcbook.training import Budget, Method, fit
from arcbook.views import augment_for


class Terms(NamedTuple):
    loss: Tensor


class Classifier(Method):
    "Cross entropy on one augmented view."
    def __init__(self):
        super().__init__()
        self.network, self.augment = Network("resnet8", 10, head="none"), augment_for("cifar10")

    def forward(self, batch, step, generator):
        return Terms(F.cross_entropy(self.network(self.augment(batch.images, generator)).logits, batch.labels))


def bare(images: int, batch: int) -> float:
    "Images per second of the model step alone."
    network = Network("resnet8", 10, head="none").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    x, y = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.randint(0, 10, (batch,))
    started = time.perf_counter()
    for _ in range(images // batch):
        optimizer.zero_grad()
        F.cross_entropy(network(x).logits, y).backward()
        optimizer.step()
    return images / (time.perf_counter() - started)


def ours(data: ImageSet, batch: int) -> float:
    "Images per second of `fit` with batched views."
    history = fit(Classifier(), data, Budget("cpu", epochs=1, batch_size=batch, lr=0.05))
    return history.images / history.seconds


def loader(data: ImageSet, batch: int) -> float:
    "Images per second of a DataLoader with per-image PIL transforms; nothing is trained."
    from PIL import Image
    from torchvision import transforms as t
    chain = t.Compose([t.RandomCrop(32, 4), t.RandomHorizontalFlip(), t.ColorJitter(0.4, 0.4, 0.4, 0.1), t.ToTensor()])
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in data.images]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self): return len(pictures)
        def __getitem__(self, i): return chain(pictures[i]), int(data.labels[i])

    batches = torch.utils.data.DataLoader(Pictures(), batch, shuffle=True, num_workers=2, persistent_workers=True)
    for _ in batches: pass                                # workers started
    started = time.perf_counter()
    for _ in batches: pass
    return len(data) / (time.perf_counter() - started)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 2048), ("batch", 128), ("repeats", 5)): arguments.add_argument(f"--{name}", type=int, default=default)
    a = arguments.parse_args()
    torch.manual_seed(0)
    data = ImageSet(torch.randint(0, 256, (a.images, 3, 32, 32), dtype=torch.uint8), torch.randint(0, 10, (a.images,)), [str(i) for i in range(10)])
    bare(a.images // 2, a.batch), ours(data, a.batch)     # warm-up
    pairs = [(bare(a.images, a.batch), ours(data, a.batch)) for _ in range(a.repeats)]   # alternating
    step, whole = (statistics.median(column) for column in zip(*pairs))
    pil = loader(data, a.batch)
    print(f"bare model step          {step:8,.0f} images/s\nfit with batched views   {whole:8,.0f} images/s   {whole / step:.2f} of the bare step (per-pair median {statistics.median(b / a for a, b in pairs):.2f})")
    print(f"PIL loader alone         {pil:8,.0f} images/s   fit trains {whole / pil:.2f} times as fast as it only loads")
