"""A long capture that is interrupted goes on at the view, and becomes what it would have become."""

from dataclasses import replace

import pytest
import torch

from conftest import ColorTeacher
from cuao3d.errors import DiskFullError, InputError
from cuao3d.pipeline import fuse, fusing, unfinished
from cuao3d.scene import Source
from cuao3d.store import Store
from test_fuse_reads import Scenes
from test_identity import content

NUM_VIEWS = 11


class Stops(ColorTeacher):
    """The colour teacher, shown several images at a time; before one of them it is interrupted."""

    def __init__(self, at=None):
        self.stops_at, self.num_shown = at, 0  # under another name, so that it is no option of the teacher

    def batch(self, images):
        self.num_shown += len(images)
        if self.stops_at is not None and self.num_shown > self.stops_at:
            raise KeyboardInterrupt
        return (torch.stack([super(Stops, self).__call__(image) for image in images]),)


@pytest.fixture
def long_scene(synthetic_scene):
    """A scene of eleven views, no two of which show the same; the third cannot be read."""

    def broken():
        raise InputError("frame-2.color.png is damaged")

    def read(number):
        frame = synthetic_scene.frames[number % 2]
        return lambda: (frame.read_image() * (1 - number / 40)).contiguous()

    readers = [broken if number == 2 else read(number) for number in range(NUM_VIEWS)]
    frames = [
        replace(synthetic_scene.frames[number % 2], name=str(number), read_image=reader)
        for number, reader in enumerate(readers)
    ]
    return replace(synthetic_scene, frames=tuple(frames))


@pytest.fixture(autouse=True)
def kept_often(monkeypatch):
    """Sums are kept after every two views, of captures of more than five."""
    monkeypatch.setattr(fusing, "LONG", 5)
    monkeypatch.setattr(unfinished, "EVERY", 2)
    monkeypatch.setattr(unfinished, "SHARE", 1e9)


def lift(scene, out, teacher, **how):
    return fuse(Scenes(scene), [teacher], out, cell=0.05, batch_size=2, **how)


def interrupt(scene, out, at, **how):
    """Lift until a view; return where sums would be kept."""
    with pytest.raises(KeyboardInterrupt):
        lift(scene, out, Stops(at), **how)
    return Store.open(out).path / "scenes" / scene.name / unfinished.FILE


@pytest.mark.parametrize(("how", "stops_at"), [("none", (1, 4, 9)), ("robust", (8, 16)), ("geometry", (5,))])
def test_an_interrupted_capture_becomes_what_it_would_have_become(long_scene, tmp_path, how, stops_at):
    whole = Stops()
    expected = content(lift(long_scene, tmp_path / "whole", whole, view_weights=how))
    assert not any(name.endswith(unfinished.FILE) for name in expected)
    for at in stops_at:
        file = interrupt(long_scene, tmp_path / f"{at}", at, view_weights=how)
        assert file.is_file() == (at > 2)
        rest = Stops()
        store = lift(long_scene, tmp_path / f"{at}", rest, view_weights=how)
        assert content(store) == expected
        assert rest.num_shown <= whole.num_shown - at + 3  # the views of a batch and of one that was not kept
        assert not file.is_file()


def test_no_reader_meets_the_sums_of_an_unfinished_scene(long_scene, tmp_path):
    assert interrupt(long_scene, tmp_path / "store", 6).is_file()
    assert Store.open(tmp_path / "store").names() == ()
    assert Store.open(tmp_path / "store").missing() == {"synthetic": "unfinished"}


def test_sums_that_are_damaged_or_of_another_lifting_are_not_gone_on_from(long_scene, tmp_path):
    expected = content(lift(long_scene, tmp_path / "whole", Stops()))
    file = interrupt(long_scene, tmp_path / "damaged", 8)
    broken = bytearray(file.read_bytes())
    broken[-5] ^= 1
    file.write_bytes(broken)
    assert content(lift(long_scene, tmp_path / "damaged", teacher := Stops())) == expected
    assert teacher.num_shown == NUM_VIEWS - 1
    interrupt(long_scene, tmp_path / "other", 8)
    moved = replace(long_scene, points=long_scene.points + torch.tensor([0.001, 0, 0]))
    lift(moved, tmp_path / "other", teacher := Stops())
    assert teacher.num_shown == NUM_VIEWS - 1


def test_sums_of_other_views_are_not_gone_on_from(long_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(fusing, "source_of_scene", lambda scene: Source({}))  # it knows of neither depth nor poses
    interrupt(long_scene, tmp_path / "store", 8)
    fewer = replace(long_scene, frames=(*long_scene.frames[:3], *long_scene.frames[5:]))
    lift(fewer, tmp_path / "store", teacher := Stops())
    assert teacher.num_shown == NUM_VIEWS - 3


def test_a_disk_too_full_for_sums_costs_nothing_else(long_scene, tmp_path, monkeypatch, capsys):
    expected = content(lift(long_scene, tmp_path / "whole", Stops()))

    def full(*_arguments, **_options):
        raise DiskFullError("There is no space left on the disk")

    monkeypatch.setattr(unfinished, "write_tensors", full)
    assert content(lift(long_scene, tmp_path / "store", Stops())) == expected
    assert "synthetic: it could not go on from here after an interruption. There is no" in capsys.readouterr().err


def test_short_captures_keep_nothing(long_scene, tmp_path, monkeypatch):
    monkeypatch.setattr(fusing, "LONG", NUM_VIEWS)
    assert not interrupt(long_scene, tmp_path / "store", 8).is_file()
