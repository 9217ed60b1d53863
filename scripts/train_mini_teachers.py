"""Train the mini teachers from pixels and write their weights and cards.

    python scripts/render_teacher_rooms.py rooms --out views/rooms --num-rooms 340
    python scripts/render_teacher_rooms.py houses --out views/houses --num-rooms 260
    python scripts/train_mini_teachers.py mini-lseg --views views
    python scripts/train_mini_teachers.py mini-vit --views views
    python scripts/train_mini_teachers.py mini-dino --views views
    python scripts/train_mini_teachers.py mini-diffusion --views views

Each uses one core. A training that was interrupted, or that ended after `--minutes`, goes on when it is started again
with the same arguments. The last `NUM_TEST_ROOMS` rooms of each world are held out; the metrics on the card are
measured on their views.
"""

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn

from cuao3d.teachers.mini import IMAGE_SIZE, WEIGHTS
from cuao3d.worlds.rooms import TEACHER_SEEDS
from mini_objectives import NUM_KINDS, OBJECTIVES, Objective, Views, as_tensor, resize

VIEWS_PER_ROOM, NUM_TEST_ROOMS = 10, 20
NUM_TEST_VIEWS = VIEWS_PER_ROOM * NUM_TEST_ROOMS
SAVE_EVERY, MEASURE_EVERY = 100, 500
Name = Literal["mini-lseg", "mini-vit", "mini-dino", "mini-diffusion"]


@dataclass(frozen=True)
class Plan:
    """What a training is to be."""

    teacher: tyro.conf.Positional[Name]
    """Which one is trained."""
    views: Path
    """Folder of render_teacher_rooms.py's views: rooms and houses."""
    out: Path = WEIGHTS
    """Folder to write to."""
    steps: int = 3000
    """Optimiser steps."""
    batch: int = 16
    """Views a step."""
    learning_rate: float = 2e-3
    """Highest learning rate of the one-cycle schedule."""
    seed: int = 0
    """Seed of the weights and of what is drawn."""
    minutes: float = 115
    """Stop after so long; the next start goes on."""
    start: Path | None = None
    """Folder of an earlier training to begin with what it learned; another seed is to be chosen."""


def main(plan: Plan) -> None:
    """Train one teacher and write its weights (safetensors) and card (JSON)."""
    torch.manual_seed(plan.seed)
    torch.set_num_threads(1)
    everything = {world: load(plan.views / world) for world in ("rooms", "houses")}
    num_pixels = sum(
        np.bincount(labels[:-NUM_TEST_VIEWS:7].ravel(), minlength=256)[:NUM_KINDS] for _, labels in everything.values()
    )
    objective = OBJECTIVES[plan.teacher](torch.from_numpy(np.asarray(num_pixels)))
    train = {world: everything[world] for world in objective.worlds}
    test: Views = {
        world: (images[-NUM_TEST_VIEWS:], labels[-NUM_TEST_VIEWS:]) for world, (images, labels) in everything.items()
    }
    if plan.start is not None:
        learned = torch.load(plan.start / f"{plan.teacher}.part", weights_only=True)["network"]
        objective.network.load_state_dict(learned)
    seconds = optimise(plan, objective, train, test)
    if seconds is None:
        print("stopped for now; start again to go on", flush=True)
        return
    metrics = objective.measure(test)
    print(json.dumps(metrics), flush=True)
    write(plan, objective, metrics, seconds, sum(len(images) - NUM_TEST_VIEWS for images, _ in train.values()))


def optimise(plan: Plan, objective: Objective, train: Views, test: Views) -> float | None:
    """Take the steps that are left; return the seconds that all took, or None where time ran out."""
    network = objective.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, plan.learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, plan.learning_rate, total_steps=plan.steps, pct_start=0.1)
    part, start, spent, first = plan.out / f"{plan.teacher}.part", time.time(), 0.0, 0
    if part.is_file():
        kept = torch.load(part, weights_only=True)
        network.load_state_dict(kept["network"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        first, spent = kept["step"], kept["seconds"]
    for step in range(first, plan.steps):
        torch.manual_seed(plan.seed * 1_000_003 + step)
        value = objective.loss(*sample(train, plan.batch, np.random.default_rng([plan.seed, step])))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        seconds, last = spent + time.time() - start, step + 1 == plan.steps
        if (step + 1) % SAVE_EVERY == 0 or last:
            state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
            plan.out.mkdir(parents=True, exist_ok=True)
            torch.save(state | {"schedule": schedule.state_dict(), "step": step + 1, "seconds": seconds}, f"{part}.new")
            os.replace(f"{part}.new", part)
            print(f"step {step + 1} loss {value.item():.3f} after {seconds:.0f} s", flush=True)
        if (step + 1) % MEASURE_EVERY == 0 and not last:
            print(json.dumps(objective.measure({w: (x[::2], y[::2]) for w, (x, y) in test.items()})), flush=True)
        if time.time() - start > 60 * plan.minutes and not last:
            return None
    return spent + time.time() - start


def write(plan: Plan, objective: Objective, metrics: dict[str, float], seconds: float, num_views: int) -> None:
    """Write the weights and the card."""
    path = plan.out / f"{plan.teacher.replace('-', '_')}.safetensors"
    network = objective.shipped or objective.network
    for extra in objective.not_kept:
        delattr(network, extra)
    state = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
    save_file({**state, **objective.extra}, path)
    arguments = f"--views {plan.views.name} --steps {plan.steps} --batch {plan.batch} --seed {plan.seed}"
    arguments += f" --learning-rate {plan.learning_rate}" + (f" --start {plan.start.name}" if plan.start else "")
    earlier = None if plan.start is None else (plan.start / path.name).with_suffix(".json")
    before = {} if earlier is None else json.loads(earlier.read_text(encoding="utf-8"))
    card = {
        "teacher": plan.teacher,
        "data": f"Views of {' and '.join(objective.worlds)} made by cuao3d.worlds (scripts/render_teacher_rooms.py), "
        f"seeds from {TEACHER_SEEDS} on",
        "objective": " ".join((objective.loss.__doc__ or "").split()),
        "num_views": num_views,
        "num_test_views": NUM_TEST_VIEWS,
        "seed": plan.seed,
        "commands": [*before.get("commands", []), f"python scripts/{Path(__file__).name} {plan.teacher} {arguments}"],
        "seconds": round(seconds) + before.get("seconds", 0),
        "metrics_on_unseen_rooms": metrics,
        "num_parameters": sum(value.numel() for value in state.values()),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        **objective.card,
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Open the views of a world."""
    return np.load(folder / "images.npy", mmap_mode="r"), np.load(folder / "labels.npy", mmap_mode="r")


def sample(train: Views, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw a batch of augmented views, as many of each world: random crop, mirroring, brightness and tint."""
    crops, truths, worlds = [], [], list(train)
    for place in range(batch):
        images, labels = train[worlds[place % len(worlds)]]
        index = rng.integers(len(images) - NUM_TEST_VIEWS)
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


if __name__ == "__main__":
    main(tyro.cli(Plan))
