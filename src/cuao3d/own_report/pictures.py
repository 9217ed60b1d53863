"""The pictures of a report: a scene and what it is taken for, what features tell apart, where views disagree."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from cuao3d import pane
from cuao3d.errors import InputError, UserError
from cuao3d.figures.ambiguity import choose_object, crops, study, upright_scene
from cuao3d.figures.histograms import draw_histograms, feature_histograms
from cuao3d.figures.panels import as_uri
from cuao3d.figures.segments import Described, draw_maps, draw_segments, of_lifted, segment
from cuao3d.figures.sides import draw_sides
from cuao3d.figures.training import draw_training
from cuao3d.figures.views import draw_crops, draw_disagreement
from cuao3d.history import read_history
from cuao3d.metrics import background_of
from cuao3d.own_report.case import Case, Section
from cuao3d.predictor import student_features
from cuao3d.query import heat
from cuao3d.readers import Dataset
from cuao3d.scene import UNLABELLED, Split
from cuao3d.store import Store
from cuao3d.teachers import TeacherSpec, cards_of, load_teacher
from cuao3d.text import class_vectors


def sides(case: Case) -> Section:
    """Show the scene, the truth and what its points are taken for."""
    predictors = {"Lifted features": case.lifted, "Student": case.ours}
    predictions = {
        name: predictor.segment(case.scene, case.classes) for name, predictor in predictors.items() if predictor
    }
    case.layers += _layers(case, predictions)
    title = f"{case.scene.name}: what went in, and what each point is taken for"
    figure = draw_sides(case.scene, case.classes, predictions, title, labels=case.labels, looks=case.looks)
    about = "Above: a look into the room from one of its corners, without ceiling and front walls. Below: from above."
    if case.labels is None:
        about += " There are no labels: nobody knows the truth."
    return Section("The scene", about, figures=(_picture(figure, title),))


def _layers(case: Case, predictions: Mapping[str, Tensor]) -> list[pane.Layer]:
    """Return what the 3D pane shows: the colours, the truth, what points are taken for, and where views disagree."""
    scene, layers = case.scene, list[pane.Layer]()
    if scene.colors is not None:
        layers.append(pane.photograph(scene.colors))
    if case.labels is not None:
        layers.append(pane.classes("Truth", "Taken for", case.labels, case.classes))
    layers += [pane.classes(name, "Taken for", rows, case.classes) for name, rows in predictions.items()]
    for teacher in case.store.teachers:
        if (apart := scene.disagreement(teacher)) is not None:
            values = heat(scene.spread(apart.nan_to_num(0))[scene.sample_of_point])
            seen = scene.seen[scene.sample_of_point]
            layers.append(pane.heat(teacher, "Where views disagree", values, scene.colors, seen))
    return layers


def segments(case: Case) -> Section | None:
    """Show what lifted and predicted features tell apart."""
    described: list[Described] = [of_lifted(case.scene, teacher) for teacher in case.store.teachers]
    num_lifted = len(described)
    if case.student is not None:
        for head in case.student.student.num_channels:
            predict = student_features(case.student.student, case.store, head=head, voxel_size=case.student.voxel_size)
            described.append(Described(f"student: {head}", predict(case.scene), case.scene.sample_of_point))
    if not described:
        case.written.left_out.append(("What features tell apart", "The store was made without teachers, and no run."))
        return None
    found = segment(described)
    pictures = []
    for some, who in (
        (found[:num_lifted], "each image network tells"),
        (found[num_lifted:], "the student's heads tell"),
    ):
        if some:
            title = f"What {who} apart in this scene"
            pictures.append(_picture(draw_segments(case.scene, some, title, looks=case.looks), title))
    title = "The same features as maps: every dot is a point, alike ones lie together"
    pictures.append(_picture(draw_maps(found, title), title))
    about = (
        "No words and no labels here: K-Means groups the points by their features into 8 segments. Segments that cover "
        "the same places have the same colour in all pictures. PCA and UMAP lay the features out in a plane."
    )
    return Section("What the features tell apart", about, figures=tuple(pictures))


def disagreement(case: Case) -> Section | None:
    """Show where single views disagree."""
    if case.data is None:
        why = "It needs the photographs: say what the store was made from, --data DATA."
        case.written.left_out.append(("Where views disagree", why))
        return None
    with case.part("Where views disagree"):
        return _study(case, case.data)
    return None


def _study(case: Case, dataset: Dataset) -> Section:
    """Let every view of the scene name its points; see `figures.ambiguity`."""
    lifted, stored = case.lifted, case.scene
    if lifted is None:
        raise InputError("No teacher of the store has a text encoder, so its views name nothing.")
    scene = dataset[dataset.names.index(stored.name)]
    scene = upright_scene(scene) if case.store.settings.get("upright", True) else scene
    teacher, vectors = _teacher(case.store, lifted.teacher), class_vectors(lifted.encoder, case.classes)
    found = study(scene, stored, teacher, vectors, progress=case.told)
    predicted = lifted.segment(stored, case.classes)[stored.index_of_sample]
    labels = None if case.labels is None else case.labels[stored.index_of_sample]
    of_sample = predicted if labels is None else labels
    chosen = choose_object(stored.sample_points, of_sample, found.disagreement, background_of(case.classes))
    name = case.classes.names[int(of_sample[chosen][0])] if chosen.any() else ""
    by = "says its label" if labels is not None else "say all views together"
    title = f"One object ({name}, {by}), as single photographs show it" if name else "No object is disputed"
    wrong = {} if labels is None else {"is_wrong": predicted != labels, "is_labelled": labels != UNLABELLED}
    whole = "Where the views of the scene disagree"
    pictures = (
        _picture(draw_crops(crops(scene, stored, found, chosen), case.classes, title), title),
        _picture(draw_disagreement(stored, found, whole, **wrong, looks=case.looks), whole),
    )
    about = (
        f"Every photograph is shown to {lifted.teacher} by itself and names the points that it sees. Where the names "
        "differ, the network is unsure. The object is the one that is disputed most."
    )
    if labels is None:
        about += " There are no labels, so disagreement cannot be compared with errors."
    return Section("Where views disagree", about, figures=pictures)


def _teacher(store: Store, name: str) -> Any:
    """Load the teacher of a store.

    Raises:
        InputError: It cannot be made again from its name and options, or is another one by now.
    """
    card = store.teachers[name]
    options = {
        key: "+".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        for key, value in card.options.items()
    }
    try:
        teacher = load_teacher(TeacherSpec(name, options=options))
    except (KeyError, UserError) as error:
        raise InputError(f"{name} cannot be loaded from its name alone: {error}") from error
    if cards_of([teacher])[name] != card:
        raise InputError(f"{name} is not the one that made the store: weights, options or code differ.")
    return teacher


def histograms(case: Case) -> Section | None:
    """Show how the numbers of the features are distributed."""
    if not case.store.teachers:
        return None
    split: Split | None = "train" if case.store.names("train") else None
    title = "How the numbers in each image network's features are distributed"
    figure = draw_histograms(feature_histograms(case.store, split, progress=case.told), title)
    where = "the training scenes" if split else "all scenes; there is no training scene"
    about = f"A sample of points of {where}. Numbers far off zero weigh more in a loss."
    return Section("How features are distributed", about, figures=(_picture(figure, title),))


def training(case: Case) -> Section | None:
    """Show how the student was trained."""
    if case.run is None:
        case.written.left_out.append(("The student", "No run was given: --run RUN."))
        return None
    with case.part("How the student was trained"):
        history = read_history(case.run if case.run.is_dir() else case.run.parent)
        title = "How the student was trained"
        about = (
            "σ is the noise level that the training gives each image network: the higher, the less its loss counts. "
            "Dotted: where it would settle at the present loss."
        )
        about = about if history.sigmas else "The losses of the training, step by step."
        return Section("Training", about, figures=(_picture(draw_training(history, title), title),))
    return None


def _picture(figure: "Figure", about: str) -> tuple[str, str]:

    return about, as_uri(figure)
