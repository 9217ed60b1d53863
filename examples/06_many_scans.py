"""Many scans in one store: lifted one after the other, resumed where it stopped, asked all at once.

A dataset is any object with names, a length and scenes by index; `cuao3d.open_dataset` makes one of a folder of
captures. A finished scene is not lifted again; a broken one is reported and left out. The last lines stand beside the
true labels: a scene that holds a bed should have the highest peak.

    python examples/06_many_scans.py
    python examples/06_many_scans.py FOLDER_OF_SCANS "a chair"

The same on the command line; the second `fuse` has nothing left to do:

    cuao3d fuse FOLDER_OF_SCANS --teachers mini-lseg --cell 0.05 --out STORE
    cuao3d fuse FOLDER_OF_SCANS --teachers mini-lseg --cell 0.05 --out STORE
    cuao3d query STORE "a bed" --out places.json
"""

import sys
import tempfile
import time
from pathlib import Path

import cuao3d


class Scans:
    """A bedroom, an office and a kitchen; the scan of the office is broken."""

    names = ("bedroom", "office", "kitchen")
    seeds = (0, 4, 2)

    def __len__(self) -> int:
        """Return the number of scans."""
        return len(self.names)

    def __getitem__(self, index: int) -> cuao3d.Scene:
        """Read a scan."""
        if self.names[index] == "office":
            raise OSError("the depth of frame 7 is cut short")
        return cuao3d.make_room(self.seeds[index], name=self.names[index], num_views=4)


def main(scans: str | None = None, question: str = "a bed") -> None:
    """Ask all scans of a folder, or made ones, and list them by their answers."""
    dataset = cuao3d.open_dataset(scans) if scans else Scans()
    teacher = cuao3d.load_teacher("mini-lseg")
    with tempfile.TemporaryDirectory() as folder:
        for attempt in ("first", "second"):
            begin = time.perf_counter()
            store = cuao3d.fuse(dataset, [teacher], Path(folder) / "store", cell=0.05)
            seconds = time.perf_counter() - begin
            print(f"{attempt} time: {len(store.names())} of {len(dataset)} scans in the store, {seconds:.1f} s")
        predictor = cuao3d.Predictor.open(store)
        asked = [(predictor.ask(scene, [question])[0], scene) for scene in map(store.__getitem__, store.names())]
    for answer, scene in sorted(asked, key=lambda pair: -pair[0].peak):
        print(f"{scene.name}: {answer.verdict}, peak {answer.peak:.2f}, {answer.coverage:.0%} seen", end="")
        if scene.labels is not None and scene.label_set is not None:
            names = cuao3d.label_set(scene.label_set).names
            present = [names[k] for k in cuao3d.label_set(scene.label_set).classes(scene.labels).unique() if k < 255]
            print(f"; its labels: {', '.join(present)}", end="")
        print()


if __name__ == "__main__":
    main(*sys.argv[1:3])
