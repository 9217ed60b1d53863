"""Teachers that strangers write: how their files are run, what they may be, and what is told of their mistakes."""

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cuao3d.cli import main
from cuao3d.errors import InputError, TeacherError
from cuao3d.labels import label_set
from cuao3d.pipeline import fuse
from cuao3d.readers import open_dataset
from cuao3d.readers.sevenscenes import write_capture
from cuao3d.store import Store
from cuao3d.teachers import card_of, load_teacher
from cuao3d.worlds.rooms import make_room

DATACLASS = """
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

@dataclass
class Mine:
    size: int = 8
    scale: float = 1.0
    which: Literal["mean", "max"] = "mean"
    name: str = "mine"
    num_channels: int = 3
    loss: str = "l1"

    def __call__(self, image: Tensor) -> np.ndarray:
        return image.numpy()[:, :: self.size, :: -self.size] * self.scale
"""

PLAIN = """
class Mine:
    name, num_channels = "mine", 3

    def __call__(self, image):
        return image[:, ::8, ::8]
"""


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans") / "room"
    write_capture(make_room(0, num_views=2), folder)
    return folder


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write a file of a teacher and return how it is asked for."""
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(code: str, name: str = "Mine", file: str = "mine.py") -> str:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        return f"{path}:{name}"

    return write


def image(height=24, width=32):
    return torch.rand(3, height, width)


def test_a_dataclass_with_postponed_annotations_is_made_with_its_options(own):
    spec = own(DATACLASS, file="logs 12:45:03/my teacher=2.py")
    plain = load_teacher(spec)
    assert (plain.size, plain.scale, plain.name) == (8, 1.0, "mine")
    assert (card_of(plain).loss, card_of(plain).options) == ("l1", {})
    other = load_teacher(f"{spec}:size=4,scale=0.5,which=max,name=other")
    assert (other.size, other.scale, other.which, other.name) == (4, 0.5, "max", "other")
    assert card_of(other).options == {"size": 4, "scale": 0.5, "which": "max"}
    assert other(image()).shape == (3, 6, 8)


def test_a_file_beside_it_is_found_when_it_is_run_and_when_it_is_called(own, tmp_path):
    (tmp_path / "neighbour.py").write_text("SIZE = 8")
    (tmp_path / "late.py").write_text("def shrink(image): return image[:, ::8, ::8]")
    (tmp_path / "json.py").write_text("raise AssertionError('the library is meant, once the file has been run')")
    code = PLAIN.replace("return image", "import json, late; return late.shrink(image)  # image")
    teacher = load_teacher(own(f"from neighbour import SIZE\n{code}"))
    assert teacher(image()).shape == (3, 3, 4)


def test_a_file_is_run_once_until_it_changes(own):
    counted = "import builtins\nbuiltins.runs = getattr(builtins, 'runs', 0) + 1\n" + PLAIN
    try:
        spec = own(counted)
        assert type(load_teacher(spec)) is type(load_teacher(spec))
        import builtins

        assert builtins.runs == 1
        own(counted.replace('"mine"', '"changed"') + "# longer")
        Path(spec.rpartition(":")[0]).touch()
        assert load_teacher(spec).name == "changed"
    finally:
        del builtins.runs


def test_it_travels_to_another_process(own, tmp_path, monkeypatch):
    (tmp_path / "parts.py").write_text("class Part:\n    pass")
    code = DATACLASS + "    def __post_init__(self):\n        self.part, self.held = Part(), lambda: None\n"
    spec = own(
        "from __future__ import annotations\nfrom parts import Part\n"
        + code.replace("from __future__ import annotations\n", "")
    )
    sent = pickle.dumps(load_teacher(f"{spec}:size=4"))
    for name in [name for name in sys.modules if name.startswith(("mine_", "parts"))]:
        monkeypatch.delitem(sys.modules, name)  # as in a process that has just started
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(tmp_path)])
    received = pickle.loads(sent)
    assert received(image()).shape == (3, 6, 8)


def test_a_module_of_torch_is_moved_and_its_precision_is_its_own(own):
    code = """
import torch

class Mine(torch.nn.Module):
    name, num_channels = "mine", 3

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 3, 8, stride=8)

    def forward(self, image):
        return self.layer(image[None].to(self.layer.weight.device))[0]
"""
    spec = own(code)
    assert load_teacher(spec, device="meta").layer.weight.device.type == "meta"
    with pytest.raises(InputError, match="--precision bf16: mine has no method to"):
        load_teacher(spec, precision="bf16")


def test_what_cannot_be_moved_refuses_the_flags(own):
    spec = own(PLAIN)
    assert load_teacher(spec).name == "mine"
    with pytest.raises(InputError, match="--device meta: mine has no method to"):
        load_teacher(spec, device="meta")
    with pytest.raises(InputError, match="--precision fp16: mine has no method to"):
        load_teacher(spec, precision="fp16")
    moves = PLAIN + "\n    def to(self, device, precision):\n        self.where = device, precision\n"
    teacher = load_teacher(own(moves), device="meta", precision="bf16")
    assert teacher.where == ("meta", "bf16")
    assert card_of(teacher).options == {"precision": "bf16"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("class Other: pass", r"mine\.py defines no Mine; the classes in it are Other"),
        ("Mine = 3", r"mine\.py defines no Mine; the classes in it are none"),
        (PLAIN.replace('name, num_channels = "mine", 3', "num_channels = 3"), "Mine is no teacher: it needs a name"),
        (PLAIN.replace('"mine"', "7"), 'Mine is no teacher: it needs a name, such as name = "my-teacher"; got 7'),
        (PLAIN.replace('"mine"', '"a/b"'), "'a/b' cannot be the name of a teacher"),
        (PLAIN.replace('"mine"', '""'), "'' cannot be the name of a teacher"),
        (PLAIN.replace('"mine"', '"a,b"'), "'a,b' cannot be the name of a teacher"),
        (PLAIN.replace('name, num_channels = "mine", 3', 'name = "mine"'), "it needs num_channels, .*; got None"),
        (PLAIN.replace('"mine", 3', '"mine", 0'), "it needs num_channels, .*; got 0"),
        (PLAIN.replace('"mine", 3', '"mine", 3.0'), r"it needs num_channels, .*; got 3\.0"),
        (PLAIN.replace("__call__", "describe"), r"it needs __call__\(image\), which returns a map of 3 channels"),
        (
            PLAIN + "    text = len\n",
            "mine: text should be the name of a text encoder, .*; it is a builtin_function",
        ),
        (
            PLAIN + "    def __init__(self, size): pass",
            r"Mine of .* needs size: write .*mine\.py:Mine:size=\.\.\.",
        ),
    ],
)
def test_what_a_file_lacks_is_told_in_one_line(own, code, message):
    with pytest.raises(InputError, match=message) as told:
        load_teacher(own(code))
    assert "\n" not in str(told.value)


def test_options_that_are_not_there_or_could_not_be_recorded_are_told(own):
    spec = own(DATACLASS)
    with pytest.raises(InputError, match="has no option 'sise'; it has size, scale, which, name, num_channels, loss"):
        load_teacher(f"{spec}:sise=3")
    with pytest.raises(InputError, match="which should be mean or max; got 'min'"):
        load_teacher(f"{spec}:which=min")
    forgets = own(PLAIN + "    def __init__(self, size=3): pass")
    with pytest.raises(InputError, match="should keep its option size as an attribute of that name"):
        load_teacher(f"{forgets}:size=4")
    with pytest.raises(FileNotFoundError, match=r"There is no file nowhere\.py to take Mine from"):
        load_teacher("nowhere.py:Mine")


def test_an_error_in_the_file_itself_is_told_with_its_line(own):
    spec, before = own("import no_such_package_at_all\n" + PLAIN), {*sys.modules}
    with pytest.raises(InputError, match=r"mine\.py cannot be run: ModuleNotFoundError: .*no_such_package.*line 1"):
        load_teacher(spec)
    assert {*sys.modules} == before


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ('text = "minilmm"', "'mine' names the text encoder 'minilmm': Unknown text encoder 'minilmm'; choose from"),
        ('text = "table:nowhere.npy"', "'mine' names the text encoder 'table:nowhere.npy': There is no table"),
        ('text = "table:WORDS"', "'mine' has 3 channels, the vectors of its text encoder 'table:.*npy' 5"),
        ('loss = "cosinus"', "'mine': Unknown loss 'cosinus'; choose from"),
    ],
)
def test_words_and_loss_are_tried_before_anything_is_lifted(own, tmp_path, scan, extra, message):
    np.save(tmp_path / "words.npy", np.eye(2, 5, dtype=np.float32))
    (tmp_path / "words_names.txt").write_text("chair\ntable\n")
    code = PLAIN.replace("return image", "raise AssertionError('lifted')  # image")
    teacher = load_teacher(own(code + f"    {extra}\n".replace("WORDS", str(tmp_path / "words.npy"))))
    with pytest.raises(InputError, match=message):
        fuse(open_dataset(scan), [teacher], tmp_path / "store", cell=0.1)
    assert not (tmp_path / "store").exists()


def test_one_name_twice_is_refused(own, tmp_path, scan):
    teacher = load_teacher(own(PLAIN))
    with pytest.raises(InputError, match="Two teachers have the name 'mine'"):
        fuse(open_dataset(scan), [teacher, teacher], tmp_path / "store", cell=0.1)


def test_what_breaks_its_promise_ends_the_lifting_at_its_first_view(tmp_path, own):
    room = make_room(0, num_views=2)
    for name in ("a", "b"):
        write_capture(replace(room, name=name), tmp_path / "scans" / name)
    shown = []
    teacher = load_teacher(own(PLAIN.replace('"mine", 3', '"mine", 4')))
    describe = type(teacher).__call__
    type(teacher).__call__ = lambda self, picture: shown.append(0) or describe(self, picture)
    with pytest.raises(TeacherError, match="Teacher 'mine' promises 4 channels but gave 3"):
        fuse(open_dataset(tmp_path / "scans"), [teacher], tmp_path / "store", cell=0.1)
    assert len(shown) == 1


@pytest.mark.parametrize(
    "error",
    [RuntimeError("no\x1b[31m"), KeyError("k"), MemoryError(), SystemExit(0), OSError(5, "I/O error"), StopIteration()],
)
@pytest.mark.parametrize("batched", [True, False])
def test_whatever_a_teacher_raises_costs_its_scene_alone(tmp_path, own, scan, capsys, error, batched):
    for name in ("a", "b"):
        shutil.copytree(scan, tmp_path / "scans" / name)
    teacher = load_teacher(own(PLAIN + "    seen = 0\n"))

    def describe(self, image):
        self.seen += 1
        if self.seen == 1:
            raise error
        return image

    setattr(type(teacher), "batch" if batched else "__call__", describe)
    store = fuse(open_dataset(tmp_path / "scans"), [teacher], tmp_path / "store", cell=0.2)
    assert store.names() == ("b",)
    said = capsys.readouterr().err
    assert f"left out a: Teacher 'mine' failed: {type(error).__name__}: " in said
    assert "\x1b" not in said


def test_an_interrupt_is_no_error_of_the_teacher(tmp_path, own):
    write_capture(make_room(0, num_views=1), tmp_path / "scan")
    teacher = load_teacher(own(PLAIN.replace("return", "raise KeyboardInterrupt #")))
    with pytest.raises(KeyboardInterrupt):
        fuse(open_dataset(tmp_path / "scan"), [teacher], tmp_path / "store", cell=0.2)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys\nsys.exit()", r"mine\.py cannot be run: SystemExit: .*line 2"),
        (PLAIN + "    def __init__(self): raise MemoryError", r"Mine of .*mine\.py cannot be made: MemoryError"),
        (PLAIN + "    def to(self, device): quit()", "--device cpu: mine cannot be moved there: SystemExit"),
    ],
)
def test_what_a_teacher_raises_before_it_is_used_is_told(own, code, message):
    with pytest.raises(InputError, match=message):
        load_teacher(own(code))


def test_a_store_records_options_and_goes_on_with_no_others(tmp_path, scan, own, capsys):
    spec, store = own(DATACLASS), str(tmp_path / "store")

    def lift(options: str) -> int:
        return main(["fuse", str(scan), "--teachers", spec + options, "--cell", "0.1", "--out", store])

    assert lift(":size=4") == 0
    assert json.loads((tmp_path / "store" / "store.json").read_text())["teachers"]["mine"]["options"] == {"size": 4}
    assert Store.open(store).teachers["mine"].options == {"size": 4}
    assert lift(":size=4") == 0
    capsys.readouterr()
    for options, recorded in (("", {}), (":size=2", {"size": 2})):
        assert lift(options) == 0
        assert "(mine has other weights, options or code)" in capsys.readouterr().err
        assert Store.open(store).teachers["mine"].options == recorded


def test_a_store_without_options_still_opens_and_goes_on(tmp_path, scan, own):
    command = ["fuse", str(scan), "--teachers", own(PLAIN), "--cell", "0.1", "--out", str(tmp_path / "store")]
    assert main(command) == 0
    header = json.loads((tmp_path / "store" / "store.json").read_text())
    del header["teachers"]["mine"]["options"], header["sha256"]
    (tmp_path / "store" / "store.json").write_text(json.dumps(header))
    assert Store.open(tmp_path / "store").teachers["mine"].options == {}
    assert main(command) == 0


@pytest.mark.slow
def test_any_name_that_can_be_lifted_works_up_to_the_head(tmp_path, scan, own):
    code = """
class Mine:
    num_channels, text = 6, "table:WORDS"

    def __init__(self, name="mine"):
        self.name = name

    def __call__(self, image):
        small = image[:, ::8, ::8]
        return small.repeat(2, 1, 1)
"""
    words = sorted({*label_set("scannet20").prompts, *label_set("nyu40").prompts, "red"})
    np.save(tmp_path / "words.npy", np.random.default_rng(0).normal(size=(len(words), 6)).astype(np.float32))
    (tmp_path / "words_names.txt").write_text("\n".join(words))
    spec, names = own(code.replace("WORDS", str(tmp_path / "words.npy"))), ("resnet-1.5", "half", "keys")
    store, run = str(tmp_path / "store"), str(tmp_path / "run")
    teachers = ",".join(f"{spec}:name={name}" for name in names)
    assert main(["fuse", str(scan), "--teachers", teachers, "--cell", "0.1", "--out", store]) == 0
    given = ["--teachers", "resnet_1_5,half,keys", "--steps", "1"]
    assert main(["distill", store, *given, "--out", run]) == 0
    assert set(json.loads((tmp_path / "run" / "run.json").read_text())["teachers"]) == set(names)
    for teacher in ("resnet_1-5", "half", "keys"):
        asked, out = ["--run", run, "--teacher", teacher], tmp_path / f"{teacher}.json"
        assert main(["evaluate", store, *asked, "--split", "all", "--allow-overlap", "--json", str(out)]) == 0
        assert [row["readout"] for row in json.loads(out.read_text())["rows"]] == ["distilled", "2d3d"]
        assert main(["query", store, "red", *asked, "--out", str(out)]) == 0
