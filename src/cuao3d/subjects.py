"""Subjects of probes: the frozen features of a student's heads and lifted ones, and samples of them to learn from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from cuao3d.errors import InputError
from cuao3d.evaluate import check_overlap
from cuao3d.linear import LinearMap
from cuao3d.memory import give_back
from cuao3d.predictor import check_voxels, describe_by_heads
from cuao3d.progress import OnCount
from cuao3d.run import Run, load_student
from cuao3d.scene import Split
from cuao3d.store import Store, StoredScene
from cuao3d.teachers import canonical

MOST_SAMPLES = 30_000
"""Samples that a probe learns from at most, unless told."""

LIFTED = "none"
"""Model of lifted features, as in other tables."""

Take = Callable[[StoredScene], tuple[Int64[Tensor, "M"], Tensor]]
"""Returns the samples of a scene that a probe may learn from, and what it shall predict of each."""


@dataclass(frozen=True, eq=False)
class Subjects:
    """The frozen features that are probed: all that is known of them without labels."""

    store: Store
    """Scenes, and the lifted features."""
    students: Mapping[str, Run]
    """Students, by the beginning of the names of their heads' features: "head " of the run, "baseline " of another."""
    models: Mapping[str, str]
    """Model of each read-out; of those that are not listed, `LIFTED`."""
    parts: Mapping[str, tuple[str, ...]]
    """Features that each probe reads side by side, by its read-out."""
    averages: Mapping[str, tuple[str, ...]]
    """Read-outs whose scores are the mean of those of other probes, by theirs."""
    device: str
    """Where students and probes run."""

    @staticmethod
    def open(
        store: Store,
        run: Path | None = None,
        *,
        baseline: Path | None = None,
        teachers: Sequence[str] | None = None,
        device: str = "cpu",
    ) -> "Subjects":
        """Open what is to be probed.

        Args:
            store: Scenes, with the features of teachers if these are to be probed.
            run: Folder of a distilled run, or a student's `.safetensors`; without it only lifted features are probed.
            baseline: The same of a student to compare it with, such as one of a single teacher.
            teachers: Teachers whose lifted features are probed; all of the store unless given.
            device: Where students and probes run.

        Raises:
            NotFoundError: There is no such run.
            InputError: There is nothing to probe, no such teacher, a run is of `supervise`, or a student's voxels are
                finer than the store's cells.
        """
        names = tuple(store.teachers) if teachers is None else tuple(canonical(one, store.teachers) for one in teachers)
        if unknown := [name for name in names if name not in store.teachers]:
            raise InputError(
                f"{store.path} has no features of {', '.join(unknown)}, only of {', '.join(store.teachers) or 'none'}."
            )
        paths = {"head": run, "baseline": baseline}
        students = {prefix: _open_student(path, store, device) for prefix, path in paths.items() if path is not None}
        heads = {prefix: tuple(f"{prefix} {head}" for head in read.student.heads) for prefix, read in students.items()}
        lifted = tuple(f"lifted {name}" for name in names)
        if not heads and not lifted:
            raise InputError(f"{store.path} has no lifted features; name a student to probe: --run RUN.")
        own = heads.get("head", ())
        parts = {"concatenated": own} if len(own) > 1 else {}
        parts |= {head: (head,) for head in own}
        parts |= {"baseline": heads["baseline"]} if baseline is not None else {}
        parts |= {one: (one,) for one in lifted}
        parts |= {"lifted concatenated": lifted} if len(lifted) > 1 else {}
        models = {"baseline": baseline.stem} if baseline is not None else {}
        models |= dict.fromkeys(("concatenated", "averaged", *own), run.stem) if run is not None else {}
        return Subjects(store, students, models, parts, {"averaged": own} if len(own) > 1 else {}, device)

    @property
    def widest(self) -> str:
        """The read-out on which the control learns shuffled labels: the first, the concatenated one if there is any."""
        return next(iter(self.parts))

    def check_split(self, split: Split | None) -> None:
        """Refuse to score where the probes or one of the students have learned.

        Raises:
            InputError: There are no training scenes, no scenes of the split, or scenes that were learned from.
        """
        learned, scored = self.store.names("train"), self.store.names(split)
        where = f"{self.store.path} has no finished scene in the split"
        if not learned:
            raise InputError(f"{where} train, which probes learn from; to compare teachers without: cuao3d compare.")
        if not scored:
            raise InputError(f"{where} {split}, which probes are scored on; choose another --split.")
        refuse_overlap("Probes learn", check_overlap(self.store, split, learned, allowed=True))
        for prefix, student in self.students.items():
            who = f"The student of --{'run' if prefix == 'head' else prefix} has learned"
            refuse_overlap(who, check_overlap(self.store, split, student.scenes or (), allowed=True))

    def describe(self, scene: StoredScene, samples: Int64[Tensor, "M"]) -> dict[str, Float[Tensor, "M _"]]:
        """Describe samples of a scene by each of the features, in fp32; students are in evaluation mode.

        Args:
            scene: A scene of the store.
            samples: Which samples; lifted features are zero where no view sees one.
        """
        of_points = scene.index_of_sample[samples]
        found: dict[str, Tensor] = {}
        for prefix, read in self.students.items():
            heads = list(read.student.heads)
            described = describe_by_heads(
                read.student, scene.points, heads, read.voxel_size, self.device, wanted=of_points
            )
            found |= {f"{prefix} {head}": rows.float() for head, rows in described.items()}
        row_of_sample = scene.spread(torch.arange(len(scene.seen_samples)), fill=-1)[samples]
        for name in self.lifted:
            rows = scene.features(name.removeprefix("lifted "))[row_of_sample].float()
            found[name] = rows.masked_fill(row_of_sample[:, None] < 0, 0).to(self.device)
        return found

    def apply(self, linear: LinearMap, readout: str, described: Mapping[str, Tensor]) -> Float[Tensor, "M K"]:
        """Apply the map of a read-out to described samples; the features side by side are never made.

        Args:
            linear: The map.
            readout: Which features it reads: a read-out of `parts`, or the name of other ones.
            described: Features of the samples, by their names.
        """
        parts = self.parts.get(readout, (readout,))
        weights = torch.split(linear.weight, [described[part].shape[1] for part in parts])
        return sum((described[part] @ weight for part, weight in zip(parts, weights, strict=True)), linear.bias)

    @property
    def lifted(self) -> tuple[str, ...]:
        """The names of lifted features."""
        return tuple(dict.fromkeys(part for parts in self.parts.values() for part in parts if is_lifted(part)))

    def only_lifted(self) -> "Subjects":
        """Return the lifted features alone."""
        parts = {readout: parts for readout, parts in self.parts.items() if is_lifted(readout)}
        return replace(self, students={}, parts=parts, averages={})

    def gather(self, take: Take, *, what: str, most: int, seed: int, progress: OnCount | None = None) -> "Lessons":
        """Draw samples of the training scenes at random, as many of each, and describe them.

        Args:
            take: The samples that may be drawn.
            what: What these have, for a message.
            most: Samples of all scenes at most.
            seed: Seed of the draw.
            progress: Told after each scene.

        Raises:
            InputError: None may be drawn.
        """
        names, generator = self.store.names("train"), torch.Generator().manual_seed(seed)
        share = max(1, most // max(1, len(names)))
        rows: list[dict[str, Tensor]] = []
        targets, num_usable = [], []
        for done, name in enumerate(names, start=1):
            scene = self.store[name]
            samples, wanted = take(scene)
            drawn = torch.randperm(len(samples), generator=generator)[:share]
            num_usable.append(len(samples))
            if len(drawn):
                rows.append(self.describe(scene, samples[drawn]))
                targets.append(wanted[drawn])
            give_back()
            if progress:
                progress(done, len(names))
        if not rows:
            raise InputError(
                f"No sample of the {len(names)} training scenes of {self.store.path} has {what}, which probes learn "
                "from."
            )
        features = {part: torch.cat([described[part] for described in rows]) for part in rows[0]}
        lengths = torch.tensor([len(of_scene) for of_scene in targets])
        scene_of_row = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return Lessons(features, torch.cat(targets).to(self.device), scene_of_row, sum(num_usable))


@dataclass(frozen=True, eq=False)
class Lessons:
    """Samples of training scenes to learn from."""

    features: Mapping[str, Float[Tensor, "R _"]]
    """Features of each, by the name of the features."""
    targets: Tensor
    """What is to be predicted of each: a class (R,), or numbers (R, D)."""
    scene_of_row: Int64[Tensor, "R"]
    """Scene of each."""
    num_usable: int
    """Samples that they were drawn from."""

    def inputs(self, parts: Sequence[str]) -> Float[Tensor, "R C"]:
        """Return several features of each sample side by side."""
        return torch.cat([self.features[part] for part in parts], dim=1)

    @property
    def about(self) -> str:
        """One line on the samples."""
        num_rows, num_scenes = len(self.targets), int(self.scene_of_row[-1]) + 1
        drawn = "" if num_rows == self.num_usable else f", drawn at random from {self.num_usable:,}"
        return f"each probe learns from {num_rows:,} samples of {num_scenes} training scenes{drawn}"


def refuse_overlap(who: str, seen: Sequence[str]) -> None:
    """Refuse to score scenes that were learned from.

    Args:
        who: Who has learned from them, to begin a sentence.
        seen: Their names; none if there are none.

    Raises:
        InputError: There are such scenes.
    """
    if seen:
        some = ", ".join(seen[:3]) + (f" and {len(seen) - 3} more" if len(seen) > 3 else "")
        raise InputError(f"{who} from {some}, so a score there says nothing of others; choose another --split.")


def is_lifted(readout: str) -> bool:
    """Say whether a read-out is of lifted features, which only samples have that a view sees."""
    return readout.startswith("lifted")


def _open_student(path: Path, store: Store, device: str) -> Run:
    """Read a student to probe, and freeze it.

    Raises:
        InputError: It is the upper bound, or its voxels are finer than the store's cells.
    """
    read = load_student(path)
    if read.label_set is not None:
        raise InputError(
            f"{path} was trained on labels; probes are of distilled students. It is the upper bound: --bound {path}."
        )
    check_voxels(read.voxel_size, store)
    read.student.eval().requires_grad_(False).to(device)
    return read
