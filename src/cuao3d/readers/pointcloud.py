"""Lone clouds: a file of points without any image."""

from glob import escape
from pathlib import Path

from cuao3d.errors import InputError, NotFoundError
from cuao3d.formats.points import SUFFIXES, read_points
from cuao3d.names import as_file_name
from cuao3d.readers.capture import build_scene
from cuao3d.readers.options import given_annotations, source_of
from cuao3d.scene import Scene, Source


class PointCloud:
    """A cloud without views: a student can look at it, teachers cannot.

    ```
    cloud.ply    vertices: x y z, and if there are any red green blue, nx ny nz, label
    cloud.pcd    fields x y z, and if there are any rgb, normal_x normal_y normal_z, label; ascii or binary
    cloud.las    x y z, and if there are any red green blue
    cloud.npz    arrays points (N, 3), and if there are any colors (N, 3), normals (N, 3), labels (N,)
    ```
    Metres, z up; a cloud far from the origin is moved there, and answers are in its own coordinates. `capture.json`
    beside it may name another `up`, and the `label_set` of the labels.

    Args:
        path: The file.
        annotations: Label set of the labels, a name or the path of a CSV, if `capture.json` is not to name it.
    """

    layout = f"a single file that ends in {', '.join(SUFFIXES)}"

    def __init__(self, path: Path | str, *, annotations: str | None = None) -> None:
        self.path = Path(path).absolute()
        self.annotations = given_annotations(annotations)
        if not self.path.is_file():
            raise NotFoundError(f"There is no file {self.path}.")
        self.folders: tuple[Path, ...] = (self.path.parent,)
        self.names: tuple[str, ...] = (as_file_name(self.path.stem),)

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Say whether a path is such a file."""
        return path.is_file() and path.suffix.lower() in SUFFIXES

    def __len__(self) -> int:
        return 1

    def source(self, index: int) -> Source:
        """Return what decides the scene."""
        return source_of(self.folders[index], [escape(self.path.name)], annotations=self.annotations)

    def __getitem__(self, index: int) -> Scene:
        """Read the cloud.

        Raises:
            InputError: The file is damaged, empty or of another format.
        """
        points = read_points(self.path)
        if not len(points.points):
            raise InputError(f"{self.path} holds no point.")
        folder, name = self.folders[index], self.names[index]
        return build_scene(folder, [], [], points, name=name, lone=True, annotations=self.annotations)
