import warnings
from threading import Event

import jaxtyping
import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from cuao3d.errors import InputError, TeacherError
from cuao3d.teachers.network import Level, NetworkTeacher
from cuao3d.teachers.views import describe_together


def describe_views(teacher, images, *, batch_size=4):
    """Yield a teacher's maps of each image; an empty tuple for one that could not be read."""
    for described in describe_together([teacher], images, batch_size=batch_size):
        if isinstance(described, InputError):
            raise described
        yield () if described is None else described[0]


class Pool(NetworkTeacher):
    """Toy network: colours averaged over 4 x 4 pixels; a GPU with room for `room` images is played."""

    name = "pool"
    num_channels = 3
    licence = "none"
    levels = (Level(3, 4),)

    def __init__(self, room: int = 99) -> None:
        self.network = nn.AvgPool2d(4)
        self.room = room
        self.shown: list[int] = []

    def _describe(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Tensor, ...]:
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (played)")
        self.shown.append(len(images))
        return (self.network(images),)


def images(count: int, height: int = 8) -> list[Tensor]:
    return [torch.full((3, height, 12), index / 10) for index in range(count)]


def readers(pictures):
    return [lambda picture=picture: picture for picture in pictures]


def values(described) -> list[float]:
    return [round(float(maps[0].mean()), 6) for maps in described]


def test_maps_come_in_the_order_of_the_images_whatever_the_batch():
    for batch_size in (1, 2, 3, 7):
        teacher = Pool()
        assert values(describe_views(teacher, readers(images(7)), batch_size=batch_size)) == [i / 10 for i in range(7)]
        assert max(teacher.shown) == batch_size
    assert values(describe_views(Pool(), [])) == []


def test_images_of_several_sizes_are_shown_apart():
    teacher = Pool()
    shapes = [maps[0].shape for maps in describe_views(teacher, readers([*images(2), *images(2, 16)]), batch_size=4)]
    assert shapes == [(3, 2, 3)] * 2 + [(3, 4, 3)] * 2
    assert teacher.shown == [2, 2]


def test_a_batch_that_does_not_fit_is_halved_said_once_and_nothing_is_lost():
    teacher = Pool(room=2)
    with pytest.warns(UserWarning, match="pool: no memory for 4 images at a time, goes on with 2") as said:
        found = values(describe_views(teacher, readers(images(9)), batch_size=4))
    assert found == [i / 10 for i in range(9)]
    assert len(said) == 1
    assert max(teacher.shown) == 2


def test_one_image_that_does_not_fit_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="pool: the memory of cpu does not hold one image of 12 x 8"):
            list(describe_views(Pool(room=0), readers(images(3)), batch_size=2))


def test_the_next_batch_is_read_while_one_is_described():
    asked = Event()

    def third() -> Tensor:
        asked.set()
        return images(3)[2]

    described = describe_views(Pool(), [*readers(images(2)), third], batch_size=2)
    next(described)
    assert asked.wait(timeout=10)
    assert values(described) == [0.1, 0.2]


def test_an_image_that_cannot_be_read_is_an_error_of_its_own():
    def broken() -> Tensor:
        raise OSError("frame 3 is damaged")

    with pytest.raises(OSError, match="frame 3"):
        list(describe_views(Pool(), [*readers(images(3)), broken], batch_size=2))


def test_an_image_that_its_reader_gave_up_has_no_maps_and_the_others_keep_their_places():
    first, second, third = images(3)
    described = list(describe_views(Pool(), readers([first, None, second, None, None, third]), batch_size=4))
    assert [len(maps) for maps in described] == [1, 0, 1, 0, 0, 1]
    assert values(maps for maps in described if maps) == [0, 0.1, 0.2]


def test_a_teacher_without_batches_is_shown_one_image_at_a_time():
    class Single:
        name, num_channels = "single", 3

        def __call__(self, image: Tensor) -> Tensor:
            return image[:, ::4, ::4]

    assert values(describe_views(Single(), readers(images(3)))) == [0, 0.1, 0.2]


def test_half_precision_computes_in_it_and_returns_single():
    class Layer(Pool):
        def __init__(self) -> None:
            super().__init__()
            self.network = nn.Conv2d(3, 3, 4, stride=4)

    teacher = Layer()
    image = torch.rand(3, 8, 12)
    full = teacher(image)[0]
    half = teacher.to("cpu", "bf16")(image)[0]
    assert half.dtype == torch.float32
    assert not torch.equal(full, half)
    assert torch.allclose(full, half, rtol=0.02, atol=0.02)


def giving(returned, *, batch: bool = False):
    """A teacher of three channels that returns something, of one image or of a batch."""

    class Giving:
        name, num_channels = "giving", 3

        def __call__(self, image: Tensor):
            return returned

    if batch:
        Giving.batch = Giving.__call__
    return Giving()


ARRAY = np.arange(24, dtype=np.float64).reshape(3, 2, 4)


@pytest.mark.parametrize(
    "returned",
    [
        ARRAY,
        ARRAY.astype(">f4"),
        ARRAY.astype(np.uint8),
        ARRAY[:, ::-1][:, ::-1],
        (ARRAY[:1], torch.from_numpy(ARRAY[1:])),
        [ARRAY],
        torch.from_numpy(ARRAY).half(),
        torch.from_numpy(ARRAY).requires_grad_(),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [False, True])
def test_arrays_and_tensors_of_any_numbers_are_maps(returned, batch):
    if batch:
        both = returned if isinstance(returned, tuple | list) else [returned]
        returned = tuple(np.stack([one]) if isinstance(one, np.ndarray) else one[None] for one in both)
        returned = returned[0] if len(returned) == 1 else returned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (maps,) = describe_views(giving(returned, batch=batch), readers(images(1)))
    assert torch.cat([one.float() for one in maps]).tolist() == ARRAY.tolist()
    assert not any(one.requires_grad for one in maps)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, r"'giving' returned None; expected a map \(C, h, w\) of numbers, or a tuple of such maps"),
        ((), "returned an empty tuple; expected a map"),
        ("features", "returned a str; expected a map"),
        ([[1.0, 2.0]], "returned a list; expected a map"),
        ({"map": ARRAY}, "returned a dict; expected a map"),
        ((ARRAY, None), "returned None and a ndarray of float64; expected a map"),
        (np.array([[["a"]]]), "returned a ndarray of <U1; expected a map"),
        (np.zeros((3, 2, 4), np.complex64), "returned a ndarray of complex64; expected a map"),
        (torch.zeros(3, 2, 4, dtype=torch.complex64), "returned a Tensor of torch.complex64; expected a map"),
        (np.zeros((2, 3)), r"'giving' returned \(2, 3\); expected a map \(C, h, w\), or a tuple of such maps"),
        (torch.zeros(1, 3, 2, 4), r"returned \(1, 3, 2, 4\); expected a map \(C, h, w\)"),
        (torch.zeros(3, 0, 4), r"returned \(3, 0, 4\); expected a map"),
        (torch.zeros(2, 4, 3), "'giving' promises 3 channels but gave 2"),
        ((torch.zeros(2, 4, 5), np.zeros((2, 8, 9))), r"'giving' promises 3 channels but gave 2 \+ 2"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_is_no_map_of_the_promised_width_is_told_in_one_line(returned, message):
    with pytest.raises(TeacherError, match=message) as told:
        list(describe_views(giving(returned), readers(images(1))))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (torch.zeros(3, 2, 4), r"returned \(3, 2, 4\); expected a map \(2, C, h, w\)"),
        (torch.zeros(3, 3, 2, 4), r"returned \(3, 3, 2, 4\); expected a map \(2, C, h, w\)"),
        ((torch.zeros(2, 2, 2, 4), torch.zeros(1, 1, 2, 4)), r"returned \(2, 2, 2, 4\) and \(1, 1, 2, 4\)"),
        (torch.zeros(2, 4, 2, 4), "'giving' promises 3 channels but gave 4"),
    ],
)
def test_maps_of_a_batch_are_held_against_its_size(returned, message):
    with pytest.raises(TeacherError, match=message):
        list(describe_views(giving(returned, batch=True), readers(images(2))))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_told_but_another_image_may_do(value):
    returned = torch.zeros(3, 2, 4)
    returned[1, 0, 2:] = value
    with pytest.raises(InputError, match="'giving' gave 2 of 24 values that are not finite") as told:
        list(describe_views(giving(returned), readers(images(1))))
    assert not isinstance(told.value, TeacherError)


def test_a_device_may_be_a_word():
    teacher = giving(torch.zeros(3, 2, 4))
    teacher.device = "cpu"
    assert len(list(describe_views(teacher, readers(images(2))))) == 2


def test_a_network_refuses_a_precision_that_is_not_there(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as where types are not checked
    with pytest.raises(InputError, match="--precision fp8: choose from fp32, bf16, fp16"):
        Pool().to("cpu", "fp8")
