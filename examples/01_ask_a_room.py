"""Ask a room a question, without any training.

The shortest way through the package: make a furnished room, lift the features of one small teacher onto its points,
and compare them with words. The answer may also be that the room holds no such thing. The last line looks at the true
labels, which nothing before it has seen, and says what the points that answer really are.

    python examples/01_ask_a_room.py
    python examples/01_ask_a_room.py "somewhere to sit"
"""

import sys

from cuao3d.fusion import lift, sample_cells, see
from cuao3d.labels import label_set
from cuao3d.query import Questions, ask
from cuao3d.teachers.mini import MiniLSeg
from cuao3d.text import load_text_encoder
from cuao3d.worlds.rooms import make_room


def main(question: str = "a place to sleep") -> None:
    """Ask a bedroom."""
    room = make_room(seed=0)  # 12 posed RGB-D views and a point cloud
    samples = sample_cells(room.points, cell=0.05)  # one real point per 5 cm cell
    visibility = see(room, samples)  # which view sees which of them
    features = lift(room, visibility, MiniLSeg())  # (V, 384): the mean over the views
    (answer,) = ask(features, Questions.read(load_text_encoder(MiniLSeg.text), [question]))

    print(f"{len(room.frames)} views, {len(room.points)} points, {len(features)} samples with features")
    print(f"{question!r}: {answer.verdict}")

    answering = samples.index_of_sample[visibility.seen_samples[answer.answers]]
    if len(answering):
        classes = label_set("scannet20")
        truth = classes.classes(room.labels[answering])
        commonest = truth.mode().values
        name, share = classes.names[commonest], (truth == commonest).float().mean()
        x, y, z = room.points[answering].mean(dim=0).tolist()
        print(f"{len(answering)} samples around ({x:.1f}, {y:.1f}, {z:.1f}) m; {share:.0%} of them are {name}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
