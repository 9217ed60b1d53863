"""Ask a scan of your own a question, without any training.

The shortest way through the package: open a capture, lift the features of one small teacher onto its points, and
compare them with words. The answer says where a thing is, or that the part of the scene that was seen does not hold
it. Without a path a furnished room is made. Its true labels then tell what the answering points are; nothing before
has read them.

    python examples/01_own_scan.py
    python examples/01_own_scan.py SCAN "a chair" "a window"

The same on the command line:

    cuao3d fuse SCAN --teachers mini-lseg --cell 0.05 --out STORE
    cuao3d query STORE "a bed" "an elephant" --out places.json
"""

import sys
import tempfile
from pathlib import Path

import cuao3d


def main(scan: str | None = None, *questions: str) -> None:
    """Ask a capture, or a made bedroom."""
    dataset = cuao3d.open_dataset(scan) if scan else cuao3d.Rooms([0], num_views=6)
    teacher = cuao3d.load_teacher("mini-lseg")
    with tempfile.TemporaryDirectory() as folder:
        store = cuao3d.fuse(dataset, [teacher], Path(folder) / "store", cell=0.05)
        predictor = cuao3d.Predictor.open(store)
        scene = store[store.names()[0]]
        answers = predictor.ask(scene, questions or ["a bed", "an elephant"])

    print(predictor.about)
    seen = f"{answers[0].coverage:.0%} of them seen"
    print(f"{scene.name}: {len(scene.cameras)} views, {len(scene.points)} points, {seen}")
    for answer in answers:
        print(f"{answer.words!r}: {answer.verdict}")
        if answer.answers.any():
            points = cuao3d.in_capture(scene.points[answer.answers], scene.capture_from_world)
            x, y, z = points.mean(dim=0).tolist()
            print(f"  {len(points)} points answer, around ({x:.1f}, {y:.1f}, {z:.1f}) in the capture's coordinates")
            print(f"  {what_they_are(scene, answer)}")


def what_they_are(scene: cuao3d.StoredScene, answer: cuao3d.Answer) -> str:
    """Say by the true labels what most of the answering points are."""
    if scene.labels is None or scene.label_set is None:
        return "the scene has no labels to compare with"
    classes = cuao3d.label_set(scene.label_set)
    rows = classes.classes(scene.labels[answer.answers])
    rows = rows[rows < len(classes)]  # 255 is unlabelled
    if not len(rows):
        return "none of them has a label"
    commonest = int(rows.mode().values)
    return f"{(rows == commonest).float().mean():.0%} of those with a label are {classes.names[commonest]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
