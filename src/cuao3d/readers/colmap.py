"""COLMAP models, text or binary, with depth images beside the photographs."""

from pathlib import Path

from cuao3d.errors import InputError, NotFoundError, UserError
from cuao3d.formats.colmap import ENDINGS, Photograph, find_model, read_cameras, read_images
from cuao3d.formats.entries import by_number, inside, only_file, summarise
from cuao3d.formats.images import DEPTH_ENDINGS, PHOTOGRAPHS, NoDepth, image_size, open_frame
from cuao3d.formats.lens import Lens
from cuao3d.formats.listing import files_in
from cuao3d.readers.capture import ANY_IMAGE, Captures, build_scene, open_frames
from cuao3d.readers.surface import read_surface
from cuao3d.scene import Frame, Scene

IMAGES, DEPTHS, MESH = "images", ("depth", "depths"), "mesh.ply"


class Colmap(Captures):
    """COLMAP models with depth beside them; a folder of them is many scenes.

    ```
    FOLDER/sparse/0/cameras.bin    or .txt: camera models PINHOLE, SIMPLE_PINHOLE, RADIAL, SIMPLE_RADIAL and OPENCV
    FOLDER/sparse/0/images.bin     or .txt: for each photograph its camera, and the motion from the world to it
    FOLDER/images/...              the photographs, by the names of the model
    FOLDER/depth/...               16-bit, millimetres along the optical axis, 0 or 65535 = missing; by the names of the
                                   photographs, or by their stems; the folder may also be named depths
    FOLDER/mesh.ply                optional: the cloud or mesh; any name if it is the only .ply
    ```
    The model may also lie in sparse/, in colmap/sparse/0/ or in the folder itself. Quaternions stand w first and take
    the world to the camera; they are inverted here. COLMAP counts pixels from the corner of the image, so half a pixel
    is taken off the principal points. Its unit of length is arbitrary unless the model was aligned: `"world_scale"` in
    `capture.json` says how many metres it is (positions of poses and of the .ply, not depth). Photographs that are
    distorted, and depth with them, are undistorted when they are read. points3D is not read: it is sparse. Where no
    photograph has depth and the .ply has faces, depth is cast from them.
    """

    layout = "cameras and images (.bin or .txt) in sparse/0/, sparse/ or the folder itself, images/ and depth/ beside"
    files = (
        *(
            f"{where}{kind}{end}"
            for where in ("", "sparse/", "sparse/0/", "colmap/sparse/0/")
            for kind in ("cameras", "images")
            for end in ENDINGS
        ),
        *(f"{kind}/**/*" for kind in DEPTHS),
        "*.ply",
        *ANY_IMAGE,
    )

    @classmethod
    def is_capture(cls, folder: Path) -> bool:
        """Say whether a folder is a capture of this layout."""
        return find_model(folder) is not None

    @classmethod
    def read(cls, folder: Path, annotations: str | None = None) -> Scene:
        """Read a scene: everything but the pixels, unless the cloud is built from them.

        Raises:
            NotFoundError: There is no folder of photographs.
            InputError: No frame is usable (each camera is a fisheye, say), there is neither depth nor a mesh, the model
                or the .ply are damaged, or a name leads out of the folder.
        """
        model = find_model(folder)
        if model is None:
            raise NotFoundError(f"There is no model of COLMAP in {folder}. Expected {cls.layout}.")
        lenses, photographs = read_cameras(model), {photograph.name: photograph for photograph in read_images(model)}
        depths = next((folder / kind for kind in DEPTHS if (folder / kind).is_dir()), None)
        if not (folder / IMAGES).is_dir():
            raise NotFoundError(f"There is no folder {folder / IMAGES}; put the photographs of the model there.")
        points, mesh, problems = read_surface(only_file(folder, "*.ply", MESH), has_depth=depths is not None)
        no_depth = NoDepth(
            f"{folder} has no depth/ and no mesh: a model of COLMAP alone says what was seen at sparse points only. "
            f"Put 16-bit depth images there, in millimetres, or the mesh (colmap poisson_mesher) to {MESH}."
        )
        if depths is None and points is None:
            raise InputError(no_depth.reason)
        where = next((model / f"images{end}" for end in ENDINGS if (model / f"images{end}").is_file()), model)

        def open_one(name: str) -> Frame:
            photograph = photographs[name]
            color = inside(folder / IMAGES, name, str(where))
            lens = _lens(lenses, photograph, str(where), color)
            depth = no_depth if depths is None else _depth(depths, name)
            pose = photograph.world_from_camera(where.name)
            return open_frame(name, pose, color=color, lens=lens, depth=depth)

        frames, unusable = open_frames(sorted(photographs, key=by_number), open_one)
        known = {Path(name).name for name in photographs}
        new = [path.name for path in files_in(folder / IMAGES, PHOTOGRAPHS).values() if path.name not in known]
        problems += summarise("photographs are not in the model (COLMAP could not place them)", new)
        mesh = mesh if depths is None else None
        return build_scene(folder, frames, [*unusable, *problems], points, mesh=mesh, annotations=annotations)


def _lens(lenses: dict[int, Lens | str], photograph: Photograph, where: str, color: Path) -> Lens:
    """Return the lens of a photograph; one that was reduced since has its lens reduced alike."""
    lens = lenses.get(photograph.camera, f"{where}: there is no camera {photograph.camera} in the model.")
    if isinstance(lens, str):
        raise InputError(lens)
    size = image_size(color, fitting=lens.size)
    if size == lens.size:
        return lens
    try:
        return lens.at(size)
    except UserError as error:
        raise InputError(f"{color.name}: {error}.") from error


def _depth(folder: Path, name: str) -> Path:
    """Return the depth image of a photograph: beside its name or its stem, or where it should be."""
    for path in (folder / name, folder / Path(name).name):
        for ending in DEPTH_ENDINGS:
            for candidate in (path.with_suffix(ending), path.with_name(path.name + ending)):
                if candidate.is_file():
                    return candidate
    return (folder / name).with_suffix(DEPTH_ENDINGS[0])
