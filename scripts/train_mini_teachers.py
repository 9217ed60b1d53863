"""Train the three mini teachers from pixels and write their weights and cards.

    python scripts/render_teacher_rooms.py --out views --num-rooms 300
    python scripts/train_mini_teachers.py mini-lseg --views views
    python scripts/train_mini_teachers.py mini-dino --views views
    python scripts/train_mini_teachers.py mini-diffusion --views views

The last `NUM_TEST_ROOMS` rooms of the views are held out; the metrics on the card are measured on them.
"""

import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from cuao3d.labels import label_set
from cuao3d.scene import UNLABELLED
from cuao3d.teachers.mini import IMAGE_SIZE, WEIGHTS, Denoiser, PatchTransformer, Segmenter
from cuao3d.text import MiniLM, class_vectors
from cuao3d.worlds.rooms import TEACHER_SEEDS

VIEWS_PER_ROOM, NUM_TEST_ROOMS = 10, 20
NUM_TEST_VIEWS = VIEWS_PER_ROOM * NUM_TEST_ROOMS
DATA = "Views of rooms made by cuao3d.worlds.rooms (scripts/render_teacher_rooms.py), seeds from {seed} on"


def main(
    teacher: tyro.conf.Positional[Literal["mini-lseg", "mini-dino", "mini-diffusion"]],
    views: Path,
    out: Path = WEIGHTS,
    steps: int = 2200,
    batch: int = 16,
    learning_rate: float = 2e-3,
    seed: int = 0,
    threads: int = 1,
) -> None:
    """Train one teacher and write its weights (safetensors) and card (JSON) to `out`."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    images, labels = np.load(views / "images.npy", mmap_mode="r"), np.load(views / "labels.npy", mmap_mode="r")
    network, loss, measure, extra = {"mini-lseg": segmenter, "mini-dino": transformer, "mini-diffusion": denoiser}[
        teacher
    ](torch.from_numpy(np.bincount(labels[:-NUM_TEST_VIEWS:7].ravel(), minlength=256)[:20]))
    network = network.to(memory_format=torch.channels_last)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    generator, start = np.random.default_rng(seed), time.time()
    for step in track(range(steps), f"training {teacher}"):
        value = loss(*sample(images[:-NUM_TEST_VIEWS], labels[:-NUM_TEST_VIEWS], batch, generator))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1} loss {value.item():.3f} after {time.time() - start:.0f} s", flush=True)
        if step % 400 == 399:
            print(measure(images[-NUM_TEST_VIEWS::4], labels[-NUM_TEST_VIEWS::4]), flush=True)
    metrics = measure(images[-NUM_TEST_VIEWS:], labels[-NUM_TEST_VIEWS:])
    print(metrics)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{teacher.replace('-', '_')}.safetensors"
    state = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
    save_file({**state, **extra}, path)
    card = {
        "teacher": teacher,
        "data": DATA.format(seed=TEACHER_SEEDS),
        "objective": (loss.__doc__ or "").strip(),
        "num_views": len(images) - NUM_TEST_VIEWS,
        "num_test_views": NUM_TEST_VIEWS,
        "seed": seed,
        "command": f"python scripts/{Path(__file__).name} {teacher} --views {views.name} --steps {steps} "
        f"--batch {batch} --learning-rate {learning_rate} --seed {seed}",
        "seconds": round(time.time() - start),
        "metrics_on_unseen_rooms": metrics,
        "num_parameters": sum(value.numel() for value in state.values()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n")


Parts = tuple[nn.Module, Callable[..., Tensor], Callable[..., dict[str, float]], dict[str, Tensor]]


def segmenter(num_pixels_of_class: Tensor) -> Parts:
    """Set up LSeg's objective: cross-entropy over each pixel's cosines with all class names."""
    network = Segmenter()
    words = class_vectors(MiniLM(), label_set("scannet20"))
    mean = words.mean(dim=0)
    words = F.normalize(words - mean, dim=1)
    weight = (num_pixels_of_class.float() / num_pixels_of_class.sum()).clamp(min=1e-4) ** -0.4
    weight /= weight.mean()

    def cosines(hidden: Tensor) -> Tensor:
        head = network.head.weight[:, :, 0, 0]  # |W h| from the Gram matrix, without forming embeddings
        norm = torch.einsum("bihw,ij,bjhw->bhw", hidden, head.T @ head, hidden).clamp(min=1e-8).sqrt()
        return torch.einsum("bihw,ik->bkhw", hidden, head.T @ words.T) / norm[:, None]

    def loss(image: Tensor, label: Tensor) -> Tensor:
        """Pixel-text objective of LSeg: cross-entropy over cosines / 0.07 with the centred MiniLM vectors of the 20
        class names, plus 0.5 (1 - cosine with the true name); class weights frequency^-0.4.
        """
        cosine = cosines(network.train().hidden(image))
        entropy = F.cross_entropy(cosine / 0.07, label, weight, ignore_index=UNLABELLED)
        known = label != UNLABELLED
        own = cosine.gather(1, label.clamp(max=19)[:, None])[:, 0][known]
        scale = weight[label[known]]
        return entropy + 0.5 * ((1 - own) * scale).sum() / scale.sum()

    @torch.inference_mode()
    def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        network.eval()
        confusion = torch.zeros(20, 20, dtype=torch.long)
        for first in range(0, len(images), 10):
            cosine = cosines(network.hidden(resize(as_tensor(images[first : first + 10]))))
            guess = F.interpolate(cosine, labels.shape[1:], mode="bilinear").argmax(1)
            truth = torch.from_numpy(labels[first : first + 10].astype(np.int64))
            known = truth != UNLABELLED
            confusion += torch.bincount(truth[known] * 20 + guess[known], minlength=400).reshape(20, 20)
        hit = confusion.diag().double()
        iou = hit / (confusion.sum(0) + confusion.sum(1) - hit)
        print(
            {
                name: round(100 * value, 1)
                for name, value in zip(label_set("scannet20").names, iou.tolist(), strict=True)
            }
        )
        return {"miou_percent": round(100 * iou.nanmean().item(), 2), "accuracy": (hit.sum() / confusion.sum()).item()}

    return network, loss, measure, {"text_mean": mean}


def transformer(_: Tensor) -> Parts:
    """Set up self-distillation: predict the features of masked patches from a slowly moving copy."""
    network = PatchTransformer()
    network.predictor = nn.ModuleDict(
        {
            "mask": nn.Embedding(1, 128),
            "block": nn.TransformerEncoderLayer(128, 4, 256, batch_first=True, norm_first=True, dropout=0.0),
            "out": nn.Linear(128, 128),
        }
    )
    slow = copy.deepcopy(network).requires_grad_(False)
    count, num_kept = network.grid[0] * network.grid[1], 120

    def targets(image: Tensor) -> Tensor:
        with torch.no_grad():
            layers = slow.layers(image)[-3:]
            return F.layer_norm(sum(F.instance_norm(layer.transpose(1, 2)).transpose(1, 2) for layer in layers), (128,))

    def predict(image: Tensor, order: Tensor) -> Tensor:
        seen = network.norm(network.layers(image, order[:, :num_kept])[-1])
        blank = network.predictor["mask"].weight + network.position.expand(len(image), -1, -1)
        tokens = blank.scatter_add(1, order[:, :num_kept, None].expand(-1, -1, 128), seen)
        return network.predictor["out"](network.predictor["block"](tokens))

    def loss(image: Tensor, _label: Tensor) -> Tensor:
        """Self-distillation without labels (data2vec): 40 % of the patches are seen; a predictor gives the normalised
        mean of the last three blocks of a slowly moving copy of the network at the hidden patches; squared error.
        """
        order = torch.rand(len(image), count).argsort(1)
        error = (predict(image, order) - targets(image)).square().mean(-1)
        with torch.no_grad():
            for old, new in zip(slow.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 0.003)
        return error.gather(1, order[:, num_kept:]).mean()

    @torch.inference_mode()
    def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        tokens = torch.cat([slow(resize(as_tensor(images[i : i + 10]))) for i in range(0, len(images), 10)])
        coarse = torch.from_numpy(labels[:, 8::16, 8::16].astype(np.int64)).flatten()
        flat = tokens.flatten(0, 1)
        half = len(flat) // 2
        return {
            "linear_probe_accuracy": ridge_accuracy(flat[:half], coarse[:half], flat[half:], coarse[half:]),
            "std_over_tokens": flat.std(0).mean().item(),
        }

    class Shipped(nn.Module):
        """Ships the slow copy, without the predictor."""

        def state_dict(self) -> dict[str, Tensor]:  # type: ignore[override]
            return {key: value for key, value in slow.state_dict().items() if not key.startswith("predictor")}

        def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
            return network.parameters(recurse)

        def to(self, **_: object) -> "Shipped":  # type: ignore[override]
            return self

    return Shipped(), loss, measure, {}


def denoiser(_: Tensor) -> Parts:
    """Set up DDPM: predict the noise that was added to an image."""
    network = Denoiser()

    def loss(image: Tensor, _label: Tensor) -> Tensor:
        """Denoising diffusion (DDPM, cosine schedule, 1000 steps): predict the noise; mean squared error."""
        step = (torch.rand(len(image)) ** 1.5 * network.num_steps).long()
        noise = torch.randn_like(image)
        return F.mse_loss(network.train()(network.add_noise(image, noise, step), step), noise)

    @torch.inference_mode()
    def measure(images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        network.eval()
        generator, metrics = torch.Generator().manual_seed(0), {}
        for at in (60, 200, 500):
            errors = []
            for first in range(0, len(images), 10):
                image = resize(as_tensor(images[first : first + 10]))
                step, noise = torch.full((len(image),), at), torch.randn(image.shape, generator=generator)
                errors.append(F.mse_loss(network(network.add_noise(image, noise, step), step), noise).item())
            metrics[f"noise_mse_at_step_{at}"] = float(np.mean(errors))
        return metrics

    return network, loss, measure, {}


def sample(images: np.ndarray, labels: np.ndarray, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw a batch of augmented views: random crop, mirroring, brightness and tint."""
    crops, truths = [], []
    for index in rng.integers(len(images), size=batch):
        height = 240 if rng.random() < 0.5 else int(rng.integers(150, 240))
        width = height * 4 // 3
        top, left = int(rng.integers(0, 241 - height)), int(rng.integers(0, 321 - width))
        window = (slice(top, top + height), slice(left, left + width))
        image, label = images[index][window], labels[index][window]
        if rng.random() < 0.5:
            image, label = image[:, ::-1], label[:, ::-1]
        pixels = resize(as_tensor(image[None])) * float(rng.uniform(0.8, 1.2)) + float(rng.uniform(-0.15, 0.15))
        crops.append(pixels * torch.from_numpy(rng.normal(1, 0.05, (1, 3, 1, 1)).astype(np.float32)))
        rows = (np.arange(IMAGE_SIZE[0] // 2) + 0.5) * height / (IMAGE_SIZE[0] // 2)
        columns = (np.arange(IMAGE_SIZE[1] // 2) + 0.5) * width / (IMAGE_SIZE[1] // 2)
        truths.append(torch.from_numpy(label[rows.astype(int)][:, columns.astype(int)].astype(np.int64)))
    return torch.cat(crops).contiguous(memory_format=torch.channels_last), torch.stack(truths)


def as_tensor(images: np.ndarray) -> Tensor:
    """Convert uint8 (B, H, W, 3) to floats in [-1, 1], (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def resize(images: Tensor) -> Tensor:
    """Resize by area averaging, as the teachers do."""
    return F.interpolate(images, IMAGE_SIZE, mode="area").contiguous(memory_format=torch.channels_last)


def ridge_accuracy(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Return the accuracy of a ridge-regression probe."""
    x, y, x_test, y_test = x[y < 20], y[y < 20], x_test[y_test < 20], y_test[y_test < 20]
    x, x_test = F.pad(x, (0, 1), value=1.0).double(), F.pad(x_test, (0, 1), value=1.0).double()
    weight = torch.linalg.solve(x.T @ x + 1e-2 * torch.eye(x.shape[1]).double(), x.T @ F.one_hot(y, 20).double())
    return ((x_test @ weight).argmax(1) == y_test).double().mean().item()


if __name__ == "__main__":
    tyro.cli(main)
