"""A predictor: opened once from a store, a student or both, then asked about any number of scenes."""

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from cuao3d.augment import Augmentation, augment
from cuao3d.batches import generator_of
from cuao3d.confidence import Fits, Judged, Scored, judge, read_confidence, shipped_confidence, withhold
from cuao3d.errors import InputError, UnseenError
from cuao3d.files import sha256_of
from cuao3d.geometry import voxelize
from cuao3d.labels import LabelSet
from cuao3d.query import Answer, Questions, ask, classify, scores
from cuao3d.run import load_student, run_folder
from cuao3d.store import Store, StoredScene, TeacherCard
from cuao3d.student import Student
from cuao3d.teachers import DEFAULT, TEACHERS, Calibration, calibration_of, canonical, class_names_of, vocabulary_of
from cuao3d.text import TextEncoder, class_vectors, load_text_encoder
from cuao3d.vocabulary import Told, Vocabulary

Predict = Callable[[StoredScene], Float[Tensor, "S C"]]
"""Describes every sample of a scene."""

MOST_REMEMBERED = 64
"""Questions whose vectors are remembered: those that were asked last."""

TURNED = Augmentation(flip=False, rotation=180.0, tilt=180 / 64, scale=0.1, shift=False)
"""How the official evaluation moves a scene anew in each of its passes: the bounds of its voxeliser."""


@dataclass(frozen=True)
class Passes:
    """Ways to describe the same scenes, whose scores are summed."""

    predicts: tuple[Predict, ...]
    """One a pass."""
    train_mode: bool = False
    """Whether batch norm runs in train mode in them."""


@dataclass(frozen=True, eq=False)
class Predictor:
    """Finds words in the scenes of stores: by a teacher's lifted features or, with a student, by its head for them."""

    teacher: str
    """Name of the teacher whose features, lifted or predicted, are compared with words."""
    text: str
    """Spec of the text encoder; see `load_text_encoder`."""
    encoder: TextEncoder
    """The text encoder."""
    student: Student | None = None
    """The student; None: the lifted features answer."""
    voxel_size: float = 0.0
    """Edge of the student's voxels, metres."""
    device: str = "cpu"
    """Where the student is."""
    calibration: Calibration = DEFAULT
    """Relevance at which verdicts change."""
    classes: tuple[str, ...] = ()
    """Names of the classes that the teacher can tell apart; none if it is not limited to classes."""
    told: Told = field(default_factory=Told)
    """Words that the student and the teacher were trained with."""
    trained_on: tuple[str, ...] | None = None
    """Names of the scenes that the student was trained on; None where its file does not tell, or without one."""
    fits: Mapping[str, Fits] = field(default_factory=dict)
    """How confidence was fitted, by label set; the one that was fitted last comes first."""
    fitted_for: Mapping[str, str | None] = field(default_factory=dict)
    """What of the teacher or the run decides whether a fit holds."""
    _questions: dict[tuple[str, ...], Questions] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(
        store: Store | Path | str | None = None,
        *,
        run: Path | str | None = None,
        teacher: str | None = None,
        text: str | None = None,
        device: str = "cpu",
    ) -> "Predictor":
        """Open a store, a student, or a student for the scenes of a store.

        Which teacher answers: the one that is named; otherwise the first with a text encoder. The cards of a run come
        before those of the store.

        Args:
            store: The store, or its folder; may be left out where there is a student.
            run: Folder of a finished run, or a student's `.safetensors`; without it the lifted features answer.
            teacher: Name of a teacher of the run or of the store.
            text: Text encoder that reads words; the one on the teacher's card unless given.
            device: Where the student runs, such as "cuda".

        Returns:
            The predictor; text encoder and student are loaded.

        Raises:
            NotFoundError: There is no such store, run or file.
            InputError: No teacher has a text encoder, its vectors do not fit the features, or the student's voxels are
                finer than the store's cells.
        """
        opened = store if store is None or isinstance(store, Store) else Store.open(store)
        if opened is None and run is None:
            raise InputError("A predictor needs a store, a run, or both.")
        where = str(opened.path if run is None and opened is not None else run)
        cards = dict(opened.teachers) if opened is not None else {}
        if run is None:
            chosen, spec, encoder = _choose(cards, where, teacher, text)
            limits = _limits(chosen, cards[chosen]) | _fitted(opened, None, chosen, cards[chosen], spec)
            return Predictor(chosen, spec, encoder, **limits)
        read = load_student(Path(run))
        if read.label_set is not None:
            raise InputError(
                f"{run} was trained on labels and names the {read.label_set} classes themselves, whatever words it is "
                "asked. Score it as the upper bound (cuao3d.probe.score), or give a distilled run."
            )
        widths = read.student.num_channels
        cards = {name: read.teachers.get(name) or cards.get(name) or TeacherCard(widths[name]) for name in widths}
        chosen, spec, encoder = _choose(cards, where, teacher, text)
        if opened is not None:
            check_voxels(read.voxel_size, opened)
            _compare_cards(chosen, read.teachers.get(chosen), opened)
        student = read.student.eval().to(device)
        limits = _limits(chosen, cards[chosen], read.vocabulary)
        limits |= _fitted(opened, Path(run), chosen, cards[chosen], spec)
        limits["calibration"] = student.calibration or limits["calibration"]
        limits["trained_on"] = read.scenes
        return Predictor(chosen, spec, encoder, student, read.voxel_size, device, **limits)

    @property
    def about(self) -> str:
        """One line on who answers: teacher or student, text encoder, what the teacher was trained on, calibration."""
        who = f"lifted features of {self.teacher}" if self.student is None else f"a student of {self.teacher}"
        about = getattr(TEACHERS.get(canonical(self.teacher)), "about", None)
        taught = f" {self.teacher} is {about}." if about else ""
        if self.classes:
            taught += f" It has classes for {len(self.classes)} names; other words are matched to the nearest."
        calibrated = f" The verdicts were calibrated on {self.calibration.measured_on}."
        return f"Answered by {who}; words by {self.text}.{taught}{calibrated}"

    @cached_property
    def _class_vectors(self) -> Float[Tensor, "K C"] | None:
        """Unit vectors of the classes; None without classes, or where a fixed vocabulary may lack them."""
        is_limited = self.classes and getattr(self.encoder, "vectors", None) is None
        return self.encoder(list(self.classes)) if is_limited else None

    def features(self, scene: StoredScene) -> Float[Tensor, "S C"]:
        """Return the feature of every sample of a scene; zeros where it has none (see `known`).

        Args:
            scene: A scene of any store whose cells are no coarser than the student's voxels.
        """
        if self.student is None:
            return scene.spread(scene.features(self.teacher).float())
        return _describe_samples(self.student, scene, self.teacher, self.voxel_size, self.device)

    def passes(self, num_passes: int = 1, *, train_mode: bool = False, seed: int = 0) -> Passes:
        """Return how the student describes scenes in several passes.

        A single pass is plain: the scene stays as it is. Several move it anew each (`TURNED`), as the official
        evaluation does, and so put every sample into other voxels.

        Args:
            num_passes: How many.
            train_mode: Run batch norm in train mode, on the statistics of the scene, as the released code validates.
            seed: Seed of the movements; those of a scene depend on its name and the pass alone.

        Raises:
            InputError: There is no student, or no pass.
        """
        if (student := self.student) is None:
            raise InputError("Passes are those of a student; lifted features have none. Give a run: --run RUN")
        if num_passes < 1:
            raise InputError(f"{num_passes} passes describe nothing; choose 1, or 5 as officially.")

        how: dict[str, Any] = {"voxel_size": self.voxel_size, "device": self.device, "train_mode": train_mode}
        moves = [None] if num_passes == 1 else [(seed, index) for index in range(num_passes)]
        one = partial(_describe_moved, student, self.teacher, **how)
        return Passes(tuple(partial(one, move) for move in moves), train_mode)

    def known(self, scene: StoredScene) -> Bool[Tensor, "S"]:
        """Return which samples have a feature: those that a view saw or, with a student, all of them.

        Args:
            scene: A scene of any store.
        """
        return scene.seen if self.student is None else torch.ones(len(scene.num_views), dtype=torch.bool)

    def questions(self, queries: Sequence[str]) -> Questions:
        """Return questions with their vectors; the last `MOST_REMEMBERED` are remembered.

        Args:
            queries: The questions.

        Raises:
            InputError: The text encoder does not know a word, or a question is blank.
        """
        key = tuple(queries)
        found = self._questions.pop(key, None)
        if found is None:
            found = Questions.read(self.encoder, key, classes=self.classes, class_vectors=self._class_vectors)
        self._questions[key] = found
        while len(self._questions) > MOST_REMEMBERED:
            self._questions.pop(next(iter(tuple(self._questions))), None)  # a copy: other threads may ask as well
        return found

    def ask(self, scene: StoredScene, queries: Sequence[str]) -> tuple[Answer, ...]:
        """Ask a scene free-text questions.

        Args:
            scene: A scene of any store whose cells are no coarser than the student's voxels.
            queries: The questions.

        Returns:
            An answer for each, with a value for every point of the scene's cloud.

        Raises:
            InputError: The text encoder does not know a word, a question is blank, or no view saw the scene.
        """
        known = self.known(scene)
        if not known.any():
            raise UnseenError(
                f"No view saw anything of {scene.name}, so lifted features cannot say what is in it. Ask a student, "
                "which needs no views: --run RUN. Or look at the poses: cuao3d check DATA"
            )
        of_point = scene.sample_of_point
        return tuple(
            replace(
                answer,
                scores=answer.scores.cpu()[of_point],
                relevance=answer.relevance.cpu()[of_point],
                answers=answer.answers.cpu()[of_point],
                seen=answer.seen.cpu()[of_point],
                scene=scene,
                predictor=self,
            )
            for answer in ask(self.features(scene), self.questions(queries), seen=known, calibration=self.calibration)
        )

    def scored(self, scene: StoredScene, vectors: Float[Tensor, "K C"]) -> Scored:
        """Return the scores of classes at the samples of a scene, by the lifted features and by the student.

        Args:
            scene: A scene of any store whose cells are no coarser than the student's voxels.
            vectors: Unit vector of each class.
        """
        return Scored.of(scene, self.teacher, None if self.student is None else self.features(scene), vectors)

    def judge(self, scene: StoredScene, classes: LabelSet, *, abstain: float | None = None) -> Judged:
        """Name the class of every point of a scene, and say how sure that is.

        Where a view saw the point, a student is judged together with the lifted features of its teacher, if the store
        has them: what both say is surer than what one of them says.

        Args:
            scene: A scene of any store whose cells are no coarser than the student's voxels.
            classes: The label set. Where nothing was fitted in it, confidence is that of `confidence.UNFITTED`.
            abstain: Withhold labels so that at most this share of the others is wrong, in 19 of 20 scenes like those
                that the confidence was fitted on; None: withhold none.

        Returns:
            Class and confidence of each point.

        Raises:
            InputError: The text encoder does not know a word, or nothing was fitted to abstain by.
        """
        scored = self.scored(scene, class_vectors(self.encoder, classes))
        readout = "fused" if self.student is None else "distilled"
        fits = self.fits.get(classes.name, {})
        found = judge(readout, scored.readouts()[readout], scored, fits)
        if abstain is not None:
            found = withhold(found, readout, scored, fits, abstain)
        return Judged(found.classes[scene.sample_of_point], found.confidence[scene.sample_of_point])

    def segment(self, scene: StoredScene, classes: LabelSet, *, abstain: float | None = None) -> Int64[Tensor, "N"]:
        """Name the class of every point of a scene by the prompts of a label set alone.

        Args:
            scene: A scene of any store whose cells are no coarser than the student's voxels.
            classes: The label set.
            abstain: As of `judge`.

        Returns:
            A row of the label set, 0 to K - 1, for each point; 255 where the point has no feature, or where its label
            is withheld.

        Raises:
            InputError: The text encoder does not know a word, or nothing was fitted to abstain by.
        """
        if abstain is not None:
            return self.judge(scene, classes, abstain=abstain).classes
        vectors = class_vectors(self.encoder, classes)
        return classify(scores(self.features(scene), vectors)).cpu()[scene.sample_of_point]


@torch.no_grad()
def describe(
    student: Student,
    points: Float[Tensor, "N 3"],
    head: str,
    voxel_size: float,
    device: str = "cpu",
    *,
    wanted: Int64[Tensor, "M"] | None = None,
    train_mode: bool = False,
) -> Float[Tensor, "M C"]:
    """Describe points by a student's head: each gets the feature of its voxel.

    Args:
        student: The student; it is left in the mode that it is in.
        points: World positions, metres; all of them make the voxels.
        head: Name of the head.
        voxel_size: Edge of a voxel, metres: the one that the student was trained with.
        device: Where the student is.
        wanted: Which points to describe; None: all, so that M = N.
        train_mode: Normalise by the statistics of these voxels instead of those of the run.
    """
    found = describe_by_heads(student, points, [head], voxel_size, device, wanted=wanted, train_mode=train_mode)
    return found[head]


@torch.no_grad()
def describe_by_heads(
    student: Student,
    points: Float[Tensor, "N 3"],
    heads: Sequence[str],
    voxel_size: float,
    device: str = "cpu",
    *,
    wanted: Int64[Tensor, "M"] | None = None,
    train_mode: bool = False,
) -> dict[str, Float[Tensor, "M _"]]:
    """Describe points by several heads of a student, which runs once; otherwise as `describe`."""
    voxels = voxelize(points, voxel_size)
    coords = functional.pad(voxels.coordinates, (1, 0)).to(device)
    with _mode(student, train_mode=train_mode):
        features = student(coords, torch.ones(len(coords), 3, device=device), heads=heads)
    voxel = (voxels.voxel_of_point if wanted is None else voxels.voxel_of_point[wanted]).to(device)
    return {head: features[head][voxel] for head in heads}


@contextmanager
def _mode(student: Student, *, train_mode: bool) -> Iterator[None]:
    """Run a student in a mode; it, and the running statistics of its batch norm, are left as they were."""
    was_training = student.training
    kept = {name: buffer.clone() for name, buffer in student.named_buffers()} if train_mode else {}
    student.train(train_mode)
    try:
        yield
    finally:
        student.train(was_training)
        for name, buffer in student.named_buffers():
            if name in kept:
                buffer.copy_(kept[name])


def student_features(student: Student, store: Store, *, head: str, voxel_size: float, device: str = "cpu") -> Predict:
    """Return a function that describes the samples of a store's scenes by a student's head.

    Args:
        student: The student.
        store: Whose scenes will be described.
        head: Name of the head.
        voxel_size: Edge of a voxel, metres: the one that the student was trained with.
        device: Where the student is.

    Raises:
        InputError: The voxels are finer than the store's cells, or the student has no such head.
    """
    check_voxels(voxel_size, store)
    if head not in student.heads:
        raise InputError(f"The student has no head {head!r}; it has {sorted(student.heads)}.")
    return lambda scene: _describe_samples(student, scene, head, voxel_size, device)


def _describe_samples(
    student: Student, scene: StoredScene, head: str, voxel_size: float, device: str
) -> Float[Tensor, "S C"]:
    """Describe the samples of a scene whose voxels are made of all its points, as in training."""
    return describe(student, scene.points, head, voxel_size, device, wanted=scene.index_of_sample)


def _describe_moved(
    student: Student, head: str, move: tuple[int, int] | None, scene: StoredScene, **how: Any
) -> Float[Tensor, "S C"]:
    """Describe the samples of a scene that is moved at random first, by a seed and the index of a pass; None: not."""
    points: Tensor = scene.points
    if move is not None:
        points = augment(points, TURNED, 0, generator_of(*move, zlib.crc32(scene.name.encode())))
    return describe(student, points, head, wanted=scene.index_of_sample, **how)


def check_voxels(voxel_size: float, store: Store) -> None:
    """Raise InputError where a student's voxels are finer than the cells of a store, whose scenes it shall describe."""
    if voxel_size < store.cell:
        raise InputError(
            f"The student's voxels of {voxel_size:g} m are finer than the cells of {store.path}, {store.cell:g} m. "
            f"Make a store with finer cells: cuao3d fuse DATA --cell {voxel_size:g} --out ANOTHER"
        )


def _compare_cards(teacher: str, learned: TeacherCard | None, store: Store) -> None:
    """Compare the teacher that a student learned from with the one of that name in a store.

    Raises:
        InputError: Their features cannot be compared at all. If they are only of other weights, a warning says so.
    """
    lifted = store.teachers.get(teacher)
    if learned is None or lifted is None or learned == lifted:
        return
    entries = [entry.name for entry in fields(lifted)]
    other = ", ".join(name for name in entries if getattr(learned, name) != getattr(lifted, name))
    what = f"The student learned from another {teacher!r} than the one in {store.path}: they differ in {other}"
    if learned.num_channels != lifted.num_channels:
        raise InputError(f"{what}. Lift that teacher under another name, or evaluate on a store of the student's.")
    warnings.warn(f"{what}. Scores of both together (2d3d) mix the two.", stacklevel=3)


def _choose(
    cards: Mapping[str, TeacherCard], where: str, teacher: str | None, text: str | None
) -> tuple[str, str, TextEncoder]:
    """Choose the teacher that answers, and load the text encoder that reads words for it."""
    named = None if teacher is None else canonical(teacher, cards)
    if named is not None and named not in cards:
        raise InputError(f"{where} has no teacher {teacher!r}; it has {', '.join(cards) or 'none'}.")
    askable = [name for name, card in cards.items() if card.text is not None]
    candidates = [named] if named is not None else askable or list(cards if text else ())
    if not candidates:
        raise InputError(
            f"{where} cannot be asked with words: none of its teachers ({', '.join(cards) or 'none'}) has a text "
            "encoder. Name one that fits with --text, or fuse a teacher that has one, such as mini-lseg."
        )
    spec = text or cards[candidates[0]].text
    if spec is None:
        raise InputError(f"{candidates[0]} has no text encoder. Name one that fits with --text.")
    encoder = load_text_encoder(spec)
    fitting = [name for name in (candidates if text else candidates[:1]) if _width(cards, name) == encoder.num_channels]
    if not fitting:
        width = cards[candidates[0]].num_channels
        raise InputError(
            f"The vectors of {spec} have {encoder.num_channels} channels, the features of {candidates[0]} {width}."
        )
    return fitting[0], spec, encoder


def _limits(teacher: str, card: TeacherCard, vocabulary: Vocabulary | None = Told.student) -> dict[str, Any]:
    """Return what limits answers from a teacher's features: where verdicts change, and which words it knows."""
    sha256 = card.weights_sha256
    return {
        "calibration": calibration_of(teacher, sha256),
        "classes": class_names_of(sha256),
        "told": Told(vocabulary, vocabulary_of(teacher, sha256)),
    }


def _fitted(store: Store | None, run: Path | None, teacher: str, card: TeacherCard, text: str) -> dict[str, Any]:
    """Return what was fitted of confidence: in a run, or for lifted features in the store or with their weights."""
    of: dict[str, str | None] = {"teacher": teacher, "weights_sha256": card.weights_sha256, "text": text}
    if run is None:
        assert store is not None
        shipped = shipped_confidence(card.weights_sha256) if text == card.text else {}
        fits = read_confidence(store.path, of) or shipped
    else:
        folder = run_folder(run)
        of |= {"config_sha256": sha256_of(folder / "config.json")} if folder else {}
        fits = read_confidence(folder, of) if folder else {}
    return {"fits": fits, "fitted_for": of}


def _width(cards: Mapping[str, TeacherCard], name: str) -> int:
    return cards[name].num_channels
