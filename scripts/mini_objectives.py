"""Objectives of the mini teachers, and what measures them; see `train_mini_teachers.py`."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cuao3d.labels import label_set
from cuao3d.scene import UNLABELLED
from cuao3d.teachers.mini import IMAGE_SIZE, Denoiser, Segmenter, Transformer
from cuao3d.text import MiniLM
from cuao3d.text.minilm import CENTRE_FILE
from cuao3d.worlds.kinds import taught

TEMPLATES = ("a {} in a scene", "{}", "a photo of a {}", "there is a {} in the room")
"""Sentences that words are put into."""

NUM_KINDS = len(label_set("made100"))

Views = Mapping[str, tuple[np.ndarray, np.ndarray]]
"""Held-out images (M, 240, 320, 3) and labels (M, 240, 320) of each world, uint8."""


@dataclass
class Objective:
    """What a teacher learns, and how it is measured."""

    network: nn.Module
    """What is optimised."""
    loss: Callable[[Tensor, Tensor], Tensor]
    """Images (B, 3, 120, 160) and labels (B, 60, 80) to the loss; its docstring goes onto the card."""
    measure: Callable[[Views], dict[str, float]]
    """Metrics on held-out views."""
    worlds: tuple[str, ...] = ("rooms", "houses")
    """Worlds that it is trained on."""
    extra: dict[str, Tensor] = field(default_factory=dict)
    """Tensors to keep beside the weights."""
    card: dict[str, object] = field(default_factory=dict)
    """More entries of the card."""
    shipped: nn.Module | None = None
    """What is kept in the end, if it is not the network."""
    not_kept: tuple[str, ...] = ()
    """Parts of it that only the training needs."""


def segmenter(num_pixels_of_kind: Tensor) -> Objective:
    """Set up LSeg's objective: cross-entropy over each pixel's cosines with the words for all taught kinds."""
    network = Segmenter()
    mean = _centre()
    words = {name: of_kind.words for name, of_kind in taught().items() if of_kind.to != "none"}
    vectors = [_vectors(of_kind, mean) for of_kind in words.values()]
    classes = label_set("made100")
    row_of_label = torch.full((UNLABELLED + 1,), UNLABELLED)
    ids = torch.tensor([classes.ids[classes.names.index(name)] for name in words])
    row_of_label[ids] = torch.arange(len(words))
    weight = _class_weights(num_pixels_of_kind[ids])
    generator = np.random.default_rng(0)

    def cosines(hidden: Tensor, target: Tensor) -> Tensor:
        head = network.head.weight[:, :, 0, 0]  # |W h| from the Gram matrix, without forming embeddings
        norm = torch.einsum("bihw,ij,bjhw->bhw", hidden, head.T @ head, hidden).clamp(min=1e-8).sqrt()
        return torch.einsum("bihw,ik->bkhw", hidden, head.T @ target.T) / norm[:, None]

    def loss(image: Tensor, label: Tensor) -> Tensor:
        """Pixel-text objective of LSeg: cross-entropy over cosines / 0.07 with the centred MiniLM vectors of words for
        each taught kind, drawn anew at each step, plus 0.5 (1 - cosine with the true one); weights frequency^-0.4.
        """
        target = torch.stack([of_kind[int(generator.integers(len(of_kind)))] for of_kind in vectors])
        rows = row_of_label[label]
        cosine = cosines(network.train().hidden(image), target)
        entropy = F.cross_entropy(cosine / 0.07, rows, weight, ignore_index=UNLABELLED)
        known = rows != UNLABELLED
        own = cosine.gather(1, rows.clamp(max=len(words) - 1)[:, None])[:, 0][known]
        scale = weight[rows[known]]
        return entropy + 0.5 * ((1 - own) * scale).sum() / scale.sum()

    @torch.inference_mode()
    def measure(views: Views) -> dict[str, float]:
        network.eval()
        names = F.normalize(MiniLM()(list(classes.prompts)) - mean, dim=1)
        metrics = {}
        for world, (images, labels) in views.items():
            confusion = torch.zeros(NUM_KINDS, NUM_KINDS, dtype=torch.long)
            for first in range(0, len(images), 10):
                cosine = cosines(network.hidden(resize(as_tensor(images[first : first + 10]))), names)
                guess = F.interpolate(cosine, labels.shape[1:], mode="bilinear").argmax(1)
                _count(confusion, guess, torch.from_numpy(labels[first : first + 10].astype(np.int64)))
            is_taught = torch.isin(torch.arange(NUM_KINDS), ids)
            metrics |= _scores(confusion, f"{world}_zero_shot", is_taught)
        return metrics

    vocabulary = sorted({word for of_kind in words.values() for word in of_kind})
    return Objective(network, loss, measure, ("rooms",), {"text_mean": mean}, {"vocabulary": vocabulary})


def supervised(num_pixels_of_kind: Tensor) -> Objective:
    """Set up a transformer that learns which kinds of things each patch shows."""
    network = Transformer()
    network.head = nn.Linear(160, NUM_KINDS)
    weight = _class_weights(num_pixels_of_kind)

    def loss(image: Tensor, label: Tensor) -> Tensor:
        """Supervised: weighted cross-entropy between each patch's logits and the share of each kind in the patch, with
        the labels of all kinds; weights frequency^-0.4.
        """
        logits = network.head(network.train()(image))
        share = F.one_hot(label.where(label < NUM_KINDS, NUM_KINDS), NUM_KINDS + 1)[..., :NUM_KINDS].float()
        share = F.avg_pool2d(share.permute(0, 3, 1, 2), 4).flatten(2).transpose(1, 2) * weight
        return -(share * F.log_softmax(logits, dim=-1)).sum() / share.sum()

    return Objective(network, loss, lambda views: probe(network.eval(), views), not_kept=("head",))


def self_supervised(_: Tensor) -> Objective:
    """Set up self-distillation of hidden patches and between two looks at an image."""
    network = Transformer()
    width = network.position.shape[2]
    network.predictor = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, width))
    network.project = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 128))
    slow = copy.deepcopy(network).requires_grad_(False)
    learned = nn.ModuleDict({"learned": network, "slow": slow})  # both are saved and resumed

    @torch.no_grad()
    def teach(image: Tensor) -> tuple[Tensor, Tensor]:
        layers = slow.train().layers(image)
        last = sum(F.instance_norm(layer.transpose(1, 2)).transpose(1, 2) for layer in layers[-3:])
        return F.layer_norm(last, (width,)), F.normalize(slow.project(slow.norm(layers[-1])), dim=-1)

    def loss(image: Tensor, _label: Tensor) -> Tensor:
        """Self-distillation without labels. Half of the patches are hidden, and the colours change between the looks of
        a network and of a slowly moving copy: predict the normalised mean of the copy's last three blocks at the hidden
        patches (data2vec, squared error), and tell each patch among 1,024 others by a projection (InfoNCE, 0.1).
        """
        batch, count = len(image), network.grid[0] * network.grid[1]
        hidden = _blocks(batch, network.grid)
        target, other = teach(image)
        tokens = network.norm(network.train().layers(recolour(image), hidden)[-1])
        masked = (network.predictor(tokens) - target).square().mean(-1)[hidden].mean()
        own = F.normalize(network.project(tokens), dim=-1)
        chosen = torch.randint(count, (batch, 64))[..., None]
        a = own.gather(1, chosen.expand(-1, -1, own.shape[2])).flatten(0, 1)
        b = other.gather(1, chosen.expand(-1, -1, own.shape[2])).flatten(0, 1)
        contrast = F.cross_entropy(a @ b.T / 0.1, torch.arange(len(a)))
        with torch.no_grad():
            for old, new in zip(slow.parameters(), network.parameters(), strict=True):
                old.lerp_(new, 0.004)
            for old, new in zip(slow.buffers(), network.buffers(), strict=True):
                old.copy_(new)
        return masked + 0.3 * contrast

    return Objective(
        learned, loss, lambda views: probe(slow.eval(), views), shipped=slow, not_kept=("predictor", "project")
    )


def denoiser(_: Tensor) -> Objective:
    """Set up DDPM with captions: predict the noise that was added to an image, told what is on it or nothing."""
    network = Denoiser()
    network.caption = nn.Embedding(NUM_KINDS, 128)

    def loss(image: Tensor, label: Tensor) -> Tensor:
        """Denoising diffusion (DDPM, cosine schedule, 1000 steps): predict the noise; mean squared error. Half of the
        images come with a caption, the set of kinds on them; the others, as later in use, with an empty one.
        """
        step = (torch.rand(len(image)) ** 1.2 * network.num_steps).long()
        noise = torch.randn_like(image)
        present = F.one_hot(label.where(label < NUM_KINDS, NUM_KINDS).flatten(1), NUM_KINDS + 1).amax(1).float()
        present = present[:, :NUM_KINDS] * (torch.rand(len(image), 1) < 0.5)
        told = present @ network.caption.weight / present.sum(1, keepdim=True).clamp(min=1).sqrt()
        return F.mse_loss(network.train()(network.add_noise(image, noise, step), step, told), noise)

    @torch.inference_mode()
    def measure(views: Views) -> dict[str, float]:
        network.eval()
        metrics = {}
        for at in (30, 60, 120, 250, 400):
            metrics |= {f"{key}_at_{at}": value for key, value in probe(_Decoded(network, at), views).items()}
        return metrics

    return Objective(network, loss, measure, not_kept=("caption",))


class _Decoded(nn.Module):
    """The activations of a denoiser as tokens of a 20 x 15 grid."""

    def __init__(self, network: Denoiser, step: int) -> None:
        super().__init__()
        self.network, self.step = network, step

    def forward(self, image: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        step = torch.full((len(image),), self.step)
        noisy = self.network.add_noise(image, torch.randn(image.shape, generator=generator), step)
        maps = self.network.decode(noisy, step)
        return torch.cat([F.adaptive_avg_pool2d(one, Transformer.grid) for one in maps], 1).flatten(2).transpose(1, 2)


OBJECTIVES: dict[str, Callable[[Tensor], Objective]] = {
    "mini-lseg": segmenter,
    "mini-vit": supervised,
    "mini-dino": self_supervised,
    "mini-diffusion": denoiser,
}
"""Each takes the number of pixels of each kind in the views."""


@torch.inference_mode()
def probe(network: nn.Module, views: Views) -> dict[str, float]:
    """Fit a linear probe on the first half of the views of each world, and score the second half, by patches."""
    metrics = {}
    for world, (images, labels) in views.items():
        tokens = torch.cat([network(resize(as_tensor(images[i : i + 10]))) for i in range(0, len(images), 10)])
        flat, truth = tokens.flatten(0, 1), torch.from_numpy(labels[:, 8::16, 8::16].astype(np.int64)).flatten()
        half = len(flat) // 2
        mean, std = flat[:half].mean(0), flat[:half].std(0).clamp(min=1e-4)
        x = F.pad((flat - mean) / std, (0, 1), value=1.0).double()
        y = F.one_hot(truth.clamp(max=NUM_KINDS - 1), NUM_KINDS).double()
        weight = torch.linalg.solve(x[:half].T @ x[:half] + 10 * torch.eye(x.shape[1]).double(), x[:half].T @ y[:half])
        confusion = torch.zeros(NUM_KINDS, NUM_KINDS, dtype=torch.long)
        _count(confusion, (x[half:] @ weight).argmax(1), truth[half:])
        metrics |= _scores(confusion, f"{world}_probe") | {f"{world}_std": std.mean().item()}
    return metrics


def _count(confusion: Tensor, guess: Tensor, truth: Tensor) -> None:
    known = truth < NUM_KINDS
    cells = torch.bincount(truth[known] * NUM_KINDS + guess[known], minlength=NUM_KINDS**2)
    confusion += cells.reshape(NUM_KINDS, NUM_KINDS)


def _scores(confusion: Tensor, name: str, is_taught: Tensor | None = None) -> dict[str, float]:
    """Return the mean IoU over the kinds present, in percent, and the accuracy."""
    hit, present = confusion.diag().double(), confusion.sum(1) > 0
    iou = 100 * hit / (confusion.sum(0) + confusion.sum(1) - hit).clamp(min=1)
    scores = {f"{name}_miou": iou[present].mean().item(), f"{name}_accuracy": (hit.sum() / confusion.sum()).item()}
    if is_taught is not None:
        scores[f"{name}_miou_taught"] = iou[present & is_taught].mean().item()
        scores[f"{name}_miou_held_out"] = iou[present & ~is_taught].mean().item()
    return {key: round(value, 3) for key, value in scores.items()}


def _class_weights(num_pixels: Tensor) -> Tensor:
    weight = (num_pixels.float() / num_pixels.sum()).clamp(min=1e-4) ** -0.4
    return weight / weight.mean()


def _centre() -> Tensor:
    """Return the centre of the text space, which never changed: the mean of the names of scannet20."""
    from safetensors import safe_open

    with safe_open(CENTRE_FILE, framework="pt") as file:
        mean: Tensor = file.get_tensor("text_mean").float()
    return mean


def _vectors(words: tuple[str, ...], mean: Tensor) -> Tensor:
    """Encode the words of a kind in every template."""
    sentences = [template.format(word) for word in words for template in TEMPLATES]
    return F.normalize(MiniLM()(sentences) - mean, dim=1)


def _blocks(batch: int, grid: tuple[int, int]) -> Tensor:
    """Choose patches to hide: rectangles until half of the image is covered."""
    hidden = torch.zeros(batch, *grid, dtype=torch.bool)
    for one in hidden:
        while one.float().mean() < 0.5:
            height, width = (int(torch.randint(2, 7, ())) for _ in range(2))
            top, left = int(torch.randint(grid[0] - height + 1, ())), int(torch.randint(grid[1] - width + 1, ()))
            one[top : top + height, left : left + width] = True
    return hidden.flatten(1)


def recolour(image: Tensor) -> Tensor:
    """Change brightness, contrast and the strength of the channels of each image, and sometimes take its colours."""
    batch = len(image)
    tint = 1 + 0.2 * torch.randn(batch, 3, 1, 1)
    changed = image * tint * (0.7 + 0.6 * torch.rand(batch, 1, 1, 1)) + 0.2 * torch.randn(batch, 1, 1, 1)
    grey = (torch.rand(batch, 1, 1, 1) < 0.3).float()
    return changed.lerp(changed.mean(1, keepdim=True).expand_as(changed), grey)


def as_tensor(images: np.ndarray) -> Tensor:
    """Convert uint8 (B, H, W, 3) to floats in [-1, 1], (B, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def resize(images: Tensor) -> Tensor:
    """Resize by area averaging, as the teachers do."""
    return F.interpolate(images, IMAGE_SIZE, mode="area").contiguous(memory_format=torch.channels_last)
