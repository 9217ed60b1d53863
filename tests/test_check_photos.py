"""What a check says of photographs that teachers recognise little in, and of captures without photographs."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import ColorTeacher
from cuao3d import pipeline
from cuao3d.check import check
from cuao3d.check.page import write_page
from cuao3d.cli import main
from cuao3d.readers import open_dataset
from cuao3d.scene import Scene
from cuao3d.worlds.rooms import make_room
from written import WRITERS


@pytest.fixture(scope="module")
def room() -> Scene:
    return make_room(5003, num_views=6)


def with_photos(scene: Scene, change: Callable[[Tensor], Tensor], num_changed: int) -> Scene:
    """Change the photographs of the first frames."""
    frames = [
        replace(frame, read_image=lambda frame=frame: change(frame.read_image())) if index < num_changed else frame
        for index, frame in enumerate(scene.frames)
    ]
    return replace(scene, frames=tuple(frames))


@pytest.mark.parametrize(
    ("kind", "line", "change"),
    [
        ("underexposed", "Very dark", lambda image: image * 0.05),
        pytest.param("overexposed", "Overexposed", lambda image: (image * 8).clamp(max=1), marks=pytest.mark.slow),
    ],
)
def test_bad_exposure_is_named_with_its_share_in_the_report_and_on_the_page(
    kind: str, line: str, change: Callable[[Tensor], Tensor], room: Scene, tmp_path: Path
):
    for num_changed, share in ((2, "2 of 6 views (33%)"), (6, "6 of 6 views (100%)")):
        scene = with_photos(room, change, num_changed)
        report = check(scene)
        assert report.verdict == "ok"
        assert report.measurements["photos"][kind] == [frame.name for frame in room.frames[:num_changed]]
        (said,) = [reason for reason in report.reasons if reason.startswith(line)]
        assert said.startswith(f"{line}: {share}, in which teachers recognise little: 000000, 000001")
        assert not [
            reason
            for reason in report.reasons
            if reason.startswith(("Beside the others, dark", "Beside the others, bright"))
        ]
    write_page(scene, report, tmp_path / "check.html")
    page = (tmp_path / "check.html").read_text()
    assert line in page
    assert f"<span>{kind}</span>" in page


@pytest.mark.parametrize("seed", [5000, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (5001, 5002, 5004))])
def test_made_rooms_are_well_exposed(seed: int):
    photos = check(make_room(seed, num_views=6)).measurements["photos"]
    assert (photos["underexposed"], photos["overexposed"]) == ([], [])


def test_grey_photographs_are_fine(room: Scene):
    report = check(with_photos(room, lambda image: image.mean(dim=0, keepdim=True).expand(3, -1, -1), 6))
    assert (report.verdict, report.reasons) == ("ok", check(room).reasons)


@pytest.mark.data
def test_the_lounge_is_well_exposed(lounge: Scene):
    photos = check(lounge).measurements["photos"]
    assert (photos["underexposed"], photos["overexposed"]) == ([], [])


@pytest.fixture(params=["folder", "sevenscenes"])
def colorless(request: pytest.FixtureRequest, synthetic_scene: Scene, tmp_path: Path) -> Path:
    """A capture of which every colour image is gone."""
    path = WRITERS[request.param](synthetic_scene, tmp_path / "capture")
    for color in [*path.glob("color/*"), *path.glob("*.color.png")]:
        color.unlink()
    if (path / "color").is_dir():
        (path / "color").rmdir()
    return path


@pytest.mark.parametrize("own_cloud", [True, False])
def test_a_capture_without_colours_is_read_as_points_and_depth(
    own_cloud: bool, colorless: Path, synthetic_scene: Scene
):
    if not own_cloud:
        (colorless / "points.ply").unlink()
    scene = open_dataset(colorless)[0]
    assert not any(frame.has_colors for frame in scene.frames)
    for frame, expected in zip(scene.frames, synthetic_scene.frames, strict=True):
        torch.testing.assert_close(frame.read_depth(), expected.read_depth(), rtol=0, atol=1e-3)
        with pytest.raises(ValueError, match="has no colour images"):
            frame.read_image()
    assert len(scene.points) > 100
    assert (scene.colors is not None) == own_cloud


def test_teachers_are_refused_where_there_are_no_colours_and_points_alone_are_not(colorless: Path, tmp_path: Path):
    dataset = open_dataset(colorless)
    with pytest.raises(
        ValueError, match=r"No scene could be lifted\. capture: it has no colour images.*--teachers none\.$"
    ):
        pipeline.fuse(dataset, [ColorTeacher()], tmp_path / "refused")
    store = pipeline.fuse(dataset, [], tmp_path / "store")
    assert store["capture"].num_views.sum() > 0


def test_a_check_says_that_there_are_no_colours_in_one_line(colorless: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["check", str(colorless)]) == 2
    assert capsys.readouterr().out.splitlines() == [
        "capture: unreadable",
        "  Scene capture has no colour images, which teachers and this check need. Points alone: cuao3d fuse DATA "
        "--out STORE --teachers none.",
    ]


def test_a_single_missing_photograph_is_left_out(synthetic_scene: Scene, tmp_path: Path):
    path = WRITERS["folder"](synthetic_scene, tmp_path / "capture")
    (path / "color" / "1.png").unlink()
    scene = open_dataset(path)[0]
    assert [(frame.name, frame.has_colors) for frame in scene.frames] == [("0", True)]
