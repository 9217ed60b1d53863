"""`cuao3d import`: import checkpoints and features of OpenScene and CUA-O3D."""

from pathlib import Path

from tyro.conf import Positional

from cuao3d.cli.shared import LEFT_OUT, split_names
from cuao3d.console import note, progress_bar, tell
from cuao3d.errors import InputError
from cuao3d.schema import Length


def import_official(
    sources: Positional[tuple[Path, ...]],
    *,
    out: Path,
    data: Path | None = None,
    teacher: str | None = None,
    text: str | None = None,
    cell: Length | None = None,
) -> int:
    """Import results of OpenScene or CUA-O3D: a checkpoint becomes a student, fused features become a store.

    No code in the files is run.

    Args:
        sources: A checkpoint (`.pth.tar` or `.pth`, or a student of ours); or the folder of a teacher's fused features,
            or one for each of several teachers.
        out: Student to write (.safetensors); or folder of the store to make or to resume.
        data: For features: folder of the processed scenes that they belong to, such as scannet_3d.
        teacher: For features: name of the teacher of each folder, separated by commas: lseg,dinov2,stable_diffusion
        text: For features: text encoder of the first teacher, if its name does not imply one.
        cell: For features: edge of a sample cell, metres; 0.02 unless given.
    """
    from cuao3d.imported import import_features
    from cuao3d.pipeline import import_student
    from cuao3d.progress import Stages, waiting
    from cuao3d.readers import open_dataset
    from cuao3d.store import CELL
    from cuao3d.teachers import canonical

    names = [canonical(name) for name in split_names(teacher)]
    if data is None and not names and len(sources) == 1 and not sources[0].is_dir():
        if text is not None or cell is not None:
            raise InputError(f"--{'cell' if text is None else 'text'} has no effect on a checkpoint; leave it out.")
        with waiting("reading the checkpoint"):
            read = import_student(sources[0], out)
        for line in (*read.describe().splitlines(), f"written to {out}"):
            tell(line)
        return 0
    if data is None or not names or len(set(names)) != len(sources):
        raise InputError(
            "Give one checkpoint alone; or folders of fused features, the scenes that they belong to, and the name of "
            "each folder's teacher: cuao3d import scannet_multiview_lseg --data scannet_3d --teacher lseg --out STORE"
        )
    edge = CELL if cell is None else cell
    with Stages()("importing") as said, progress_bar() as bar:
        dataset, folders = open_dataset(data), dict(zip(names, sources, strict=True))
        settings, texts = {"data": data.resolve().name}, {names[0]: text} if text else None
        task = bar.add_task("importing", total=len(dataset))

        def say(done: int, total: int, line: str) -> None:
            if line != (name := dataset.names[done - 1]):
                note(line)
            bar.update(task, completed=done, description=f"importing {name}")

        store = import_features(folders, dataset, out, cell=edge, text=texts, settings=settings, on_scene=say)
        said.append(f"{store.count_of_scenes()}, teachers {', '.join(names)}")
    return LEFT_OUT if store.missing() else 0
