"""Facts about stores at URLs: what is brought of them, when, and what is refused."""

import functools
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from conftest import PICTURE, PICTURE_COLOR, WALL, WALL_COLOR, ColorTeacher
from cuao3d import confidence, remote
from cuao3d.calibrate import fit_trust
from cuao3d.cli import main
from cuao3d.codecs import Codec
from cuao3d.errors import InputError, NotFoundError, NotInstalledError
from cuao3d.fusion import lift, sample_cells, see
from cuao3d.index.search import _Photographs
from cuao3d.names import url_of
from cuao3d.remote import RemoteFolder
from cuao3d.seals import read_sealed, write_sealed
from cuao3d.store import Store, TeacherCard
from cuao3d.store.convert import convert
from cuao3d.store.drop import drop_teacher
from cuao3d.store.inventory import inventory
from cuao3d.store.plan import end
from cuao3d.store.remote import FITTED
from cuao3d.store.revise import expect
from cuao3d.store.roll import Entry, read_roll, write_roll

fsspec = pytest.importorskip("fsspec")

URL = "memory://rooms/store"
COLOR = "color.features.safetensors"


@pytest.fixture(autouse=True)
def emptied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A cache of the test's own, a network that may be used, and nothing in memory."""
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CUAO3D_OFFLINE")
    memory().rm("/", recursive=True)
    yield
    memory().rm("/", recursive=True)


@pytest.fixture
def store(synthetic_scene, tmp_path: Path) -> Store:
    """Three scenes with labels and two teachers, one of whom knows the words wall and picture."""
    vectors = torch.full((20, 3), -1.0)
    vectors[WALL], vectors[PICTURE] = torch.tensor(WALL_COLOR), torch.tensor(PICTURE_COLOR)
    torch.save(vectors, tmp_path / "words.pt")
    cards = {"color": TeacherCard(3, text=f"table:{tmp_path / 'words.pt'}@scannet20"), "other": TeacherCard(8)}
    store = Store.create(tmp_path / "store", cell=0.05, teachers=cards)
    expect(store, {name: Entry() for name in ("one", "two", "three")})
    for index, name in enumerate(("one", "two", "three")):
        write(store, replace(synthetic_scene, name=name, split="val"), index)
    end(store, {})
    return store


def write(store: Store, scene, index: int) -> None:
    samples = sample_cells(scene.points, store.cell)
    visibility = see(scene, samples)
    random = torch.randn(len(visibility.seen_samples), 8, generator=torch.Generator().manual_seed(index))
    store.add_scene(
        scene, samples, visibility, {"color": lift(scene, visibility, ColorTeacher()), "other": random.half()}
    )


def memory():
    return fsspec.filesystem("memory")


def put(store: Store, url: str = URL) -> str:
    """Copy a store to memory."""
    for path in store.path.rglob("*"):
        if path.is_file():
            memory().pipe(f"{url}/{path.relative_to(store.path).as_posix()}", path.read_bytes())
    return url


def brought(url: str = URL) -> set[str]:
    """What the copy has of scenes, without their manifests."""
    folder = RemoteFolder(url).copy / "scenes"
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {path for path in paths if not path.endswith("manifest.json")}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of files that were asked for, in order."""
    files: list[str] = []
    bring = RemoteFolder.bring

    def counted(self: RemoteFolder, file: str, path: Path, **stated) -> bool:
        files.append(file)
        return bring(self, file, path, **stated)

    monkeypatch.setattr(RemoteFolder, "bring", counted)
    return files


def rows_of(where: str | Path, folder: Path) -> list[dict]:
    assert main(["evaluate", str(where), "--json", str(folder / "rows.json")]) == 0
    return json.loads((folder / "rows.json").read_text())["rows"]


def test_a_store_at_a_url_scores_as_it_does_here(store, tmp_path):
    here = rows_of(store.path, tmp_path)
    assert here[0]["miou"] > 50
    assert rows_of(put(store), tmp_path) == here


def test_only_the_files_of_what_is_used_are_brought(store):
    opened = Store.open(put(store))
    assert opened.names() == store.names()
    assert brought() == set()
    opened["two"].features("color")
    assert brought() == {"two/points.safetensors", f"two/{COLOR}"}


def test_rows_are_those_of_the_store(store):
    index = torch.tensor([5, 0, 7])
    scene = Store.open(put(store))["one"]
    assert torch.equal(scene.rows("other", index), store["one"].rows("other", index))
    assert torch.equal(scene.points, store["one"].points)


def test_what_was_brought_is_not_asked_for_again(store, asked):
    put(store)
    for _ in range(2):
        Store.open(URL)["one"].features("color")
    assert [file for file in asked if "one" in file] == [
        "scenes/one/manifest.json", "scenes/one/points.safetensors", f"scenes/one/{COLOR}"
    ]  # fmt: skip


@pytest.mark.parametrize("has_roll", [True, False])
def test_a_store_that_changed_is_brought_anew(store, synthetic_scene, has_roll):
    if not has_roll:
        (store.path / "scenes.json").unlink()
    before = Store.open(put(store))["one"].features("other").clone()
    Store.open(URL)["two"].features("other")
    write(store, replace(synthetic_scene, name="one", split="val"), 7)
    if has_roll:
        end(store, {})
        write_roll(store.path, {name: entry for name, entry in read_roll(store.path).items() if name != "two"})
    put(store)
    memory().rm(f"{URL}/scenes/two", recursive=True)
    opened = Store.open(URL)
    assert torch.equal(opened["one"].rows("other", torch.arange(9)), store["one"].features("other")[:9])
    assert not torch.equal(opened["one"].features("other"), before)
    assert opened.names() == ("one", "three")
    assert not any(file.startswith("two/") for file in brought())


@pytest.mark.parametrize("file", ["store.json", "scenes.json", "scenes/one/manifest.json", f"scenes/one/{COLOR}"])
def test_a_damaged_file_is_refused_by_its_url_and_does_not_stay(store, file):
    put(store)
    whole = memory().cat_file(f"{URL}/{file}")
    memory().pipe(f"{URL}/{file}", whole.replace(b"0", b"1") if b"{" in whole[:2] else whole[:-1] + b"?")
    with pytest.raises(InputError, match=f"{URL}/{file} is damaged"):
        Store.open(URL)["one"].features("color")
    memory().pipe(f"{URL}/{file}", whole)
    assert torch.equal(Store.open(URL)["one"].features("color"), store["one"].features("color"))


@pytest.mark.parametrize("change", [lambda whole: whole[:-1], lambda whole: whole + b"?"])
def test_a_file_of_another_size_is_refused(store, change):
    put(store)
    memory().pipe(f"{URL}/scenes/one/{COLOR}", change(memory().cat_file(f"{URL}/scenes/one/{COLOR}")))
    with pytest.raises(InputError, match=f"{COLOR} is damaged: it has"):
        Store.open(URL)["one"].rows("color", torch.tensor([0]))


def test_a_copy_that_was_damaged_here_is_brought_anew(store):
    path = Store.open(put(store))["one"].folder / COLOR
    Store.open(URL)["one"].features("color")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert torch.equal(Store.open(URL)["one"].features("color"), store["one"].features("color"))


def test_an_interrupted_download_leaves_nothing_and_the_next_one_goes_on(store, monkeypatch, asked):
    put(store)
    monkeypatch.setattr(remote, "CHUNK", 100)
    scene = Store.open(URL)["one"]
    open_file = memory().open

    class Cut:
        def __init__(self, stream):
            self.stream, self.left = stream, 2

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def read(self, size: int) -> bytes:
            self.left -= 1
            if self.left < 0:
                raise OSError("the connection broke")
            return self.stream.read(size)

    with monkeypatch.context() as patched:
        patched.setattr(type(memory()), "open", lambda self, path, mode: Cut(open_file(path, mode)))
        with pytest.raises(NotFoundError, match=rf"did not give scenes/one/{COLOR} \(the connection broke\)"):
            scene.features("color")
    assert brought() == {"one/points.safetensors"}
    asked.clear()
    assert torch.equal(Store.open(URL)["one"].features("color"), store["one"].features("color"))
    assert [file for file in asked if "one" in file] == [f"scenes/one/{COLOR}"]


def test_offline_what_was_read_before_is_there_and_nothing_else(store, monkeypatch):
    Store.open(put(store))["one"].features("color")
    monkeypatch.setenv("CUAO3D_OFFLINE", "1")
    scene = Store.open(URL)["one"]
    assert torch.equal(scene.features("color"), store["one"].features("color"))
    for name in ("one", "two"):
        with pytest.raises(NotFoundError, match="CUAO3D_OFFLINE forbids"):
            Store.open(URL)[name].features("other")
    with pytest.raises(NotFoundError, match="was not read before"):
        Store.open("memory://elsewhere")


def test_bases_label_sets_and_confidence_come_with_the_store(store, synthetic_scene, tmp_path):
    csv = tmp_path / "mine.csv"
    csv.write_text("id,name,r,g,b\n0,wall,1,2,3\n10,picture,4,5,6\n")
    write(store, replace(synthetic_scene, name="one", split="val", label_set=str(csv)), 0)
    end(store, {})
    small = convert(store, Codec.parse("pca:4+int8"), tmp_path / "small")
    write_sealed(small.path / FITTED, {"of": {}, "fits": {}})
    opened = Store.open(put(small))
    assert FITTED == confidence.CONFIDENCE_FILE
    assert (opened.path / FITTED).is_file()
    assert opened.label_set("mine").names == store.label_set("mine").names
    assert torch.equal(opened["one"].features("other"), small["one"].features("other"))
    (basis,) = (small.path / "bases").iterdir()
    memory().pipe(f"{URL}/bases/{basis.name}", basis.read_bytes()[:-1] + b"?")
    (opened.path / "bases" / basis.name).unlink()
    with pytest.raises(InputError, match=f"{URL}/bases/{basis.name} does not fit"):
        Store.open(URL).basis("other")
    assert not (opened.path / "bases" / basis.name).exists()


def test_info_and_verify_are_those_of_the_place(store, capsys):
    put(store)
    about = inventory(Store.open(URL))
    assert (about.path, about.num_bytes) == (URL, inventory(store).num_bytes)
    assert main(["store", "verify", URL]) == 0
    memory().pipe(f"{URL}/scenes/two/{COLOR}", memory().cat_file(f"{URL}/scenes/two/{COLOR}")[:-1] + b"?")
    assert main(["store", "verify", URL]) == 2
    assert f"damaged {URL}/scenes/two/{COLOR} is damaged" in capsys.readouterr().err.replace("\n", " ")


def test_an_index_knows_the_store_by_its_url_and_does_not_have_it_opened(store, tmp_path, asked):
    pytest.importorskip("usearch")
    put(store)
    for _ in range(2):
        assert main(["index", URL, "--out", str(tmp_path / "index")]) == 0
    asked.clear()
    assert main(["search", str(tmp_path / "index"), "wall", "--out", str(tmp_path / "found.html")]) == 0
    assert (asked, _Photographs._read(URL, "one", "")[0]) == ([], {})
    assert {one["store"] for one in read_sealed(tmp_path / "index" / "roll.json", "")["entries"].values()} == {URL}


COPY = "copy from or to the URL with the tool of that place"


@pytest.mark.parametrize(
    "words",
    [
        ["fuse", "DATA", "--out", URL],
        ["fuse", URL, "--out", "STORE"],
        ["evaluate", "STORE", "--run", URL],
        ["query", URL, "wall", "--out", f"{URL}/page.html"],
        ["distill", URL, "--out", "s3://bucket/run"],
        ["store", "convert", URL, "--codec", "int8", "--out", "STORE"],
        ["store", "convert", "STORE", "--codec", "int8", "--out", URL],
        ["store", "merge", "STORE", URL, "--out", "OTHER"],
        ["store", "drop", URL, "color"],
        ["store", "add", URL, "photo"],
        ["store", "calibrate", URL],
    ],
    ids=" ".join,
)
def test_what_would_write_there_is_refused_in_a_line(store, capsys, words):
    put(store)
    assert main(words) == 2
    assert COPY in " ".join(capsys.readouterr().err.split())
    assert not Path("s3:").exists()
    assert not Path("memory:").exists()


def test_what_would_write_there_is_refused_in_python(store, synthetic_scene, tmp_path):
    opened = Store.open(put(store))
    refused: list[Callable[[], object]] = [
        lambda: Store.create(URL),
        lambda: drop_teacher(opened, "other"),
        lambda: convert(opened, Codec.parse("int8"), tmp_path / "small"),
        lambda: fit_trust(opened, None, labels="scannet20", split="val"),
        lambda: write(opened, synthetic_scene, 0),
    ]
    for call in refused:
        with pytest.raises(InputError, match=COPY):
            call()


def test_errors_are_one_line_that_says_what_to_do(store, monkeypatch):
    put(store)
    for url, kind, said in (
        ("memory://nothing", NotFoundError, "no memory://nothing/store.json"),
        ("nonsense://store", InputError, "rotocol not known"),
        ("reference://store", InputError, "reference leads elsewhere"),
        ("simplecache::memory://rooms/store", InputError, "simplecache leads elsewhere"),
        ("https://me:secret@example.org/store", InputError, "must not hold a password"),
    ):
        with pytest.raises(kind, match=said) as caught:
            Store.open(url)
        assert "secret" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'cuao3d\[remote\]'"):
        Store.open(URL)


@pytest.mark.parametrize("name", ["../../stolen", "/stolen", ".hidden", "a/b"])
def test_names_in_a_store_lead_nowhere_else(store, tmp_path, name):
    roll = {"scenes": {**read_sealed(store.path / "scenes.json", "")["scenes"], name: {}}}
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    write_sealed(store.path / "scenes.json", roll)
    memory().pipe("/stolen/manifest.json", b"{}")
    with pytest.raises(InputError, match="cannot be the name of a scene"):
        Store.open(put(store))
    manifest = read_sealed(store.path / "scenes" / "one" / "manifest.json", "")
    manifest["label_set"], manifest["label_set_sha256"] = name, "0" * 64
    write_sealed(store.path / "scenes" / "one" / "manifest.json", manifest)
    (store.path / "scenes.json").unlink()
    memory().rm("/", recursive=True)
    with pytest.raises(InputError, match="cannot be the name of a label set"):
        Store.open(put(store))
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} <= before


def test_a_path_that_was_a_url_is_one_again_and_other_paths_are_not():
    for url in (
        "s3://bucket/store", "memory://store", "http://127.0.0.1:80/a/store", "zip://store::s3://bucket/a.zip",
        "zip://store::file:///data/a.zip", "zip://::/data/a.zip",
    ):  # fmt: skip
        assert url_of(Path(url)) == url_of(url) == url
    for path in ("store", "/data/store", "a:b/store", "..", "s3/store", "a/s3:/store"):
        assert url_of(Path(path)) is url_of(path) is None


def test_a_folder_that_is_called_like_a_protocol_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("s3:").mkdir()
    assert url_of(Path("s3:/store")) is None


def test_a_store_in_a_zip_is_read(store, tmp_path):
    with ZipFile(tmp_path / "rooms.zip", "w") as file:
        for path in store.path.rglob("*"):
            file.write(path, Path("store") / path.relative_to(store.path))
    opened = Store.open(f"zip://store::{tmp_path / 'rooms.zip'}")
    assert torch.equal(opened["one"].features("other"), store["one"].features("other"))
    assert opened.path.name == "store"
    (tmp_path / "rooms.zip").unlink()
    with pytest.raises(NotFoundError, match="is no store"):
        Store.open(f"zip://store::{tmp_path / 'rooms.zip'}")


@pytest.mark.parametrize("has_roll", [True, False])
def test_a_store_on_a_web_server_is_read(store, synthetic_scene, has_roll):
    pytest.importorskip("aiohttp")
    expect(store, {**{name: Entry() for name in store.names()}, "a #1 100%": Entry()})
    write(store, replace(synthetic_scene, name="a #1 100%", split="val"), 3)
    end(store, {})
    if not has_roll:
        (store.path / "scenes.json").unlink()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(store.path.parent)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        opened = Store.open(Path(f"{url}/store"))
        assert opened.names() == store.names()
        assert torch.equal(opened["a #1 100%"].features("other"), store["a #1 100%"].features("other"))
        with pytest.raises(NotFoundError, match="is no store"):
            Store.open(f"{url}/nothing")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    before = brought(f"{url}/store")
    with pytest.raises(NotFoundError, match="Is there a network"):
        Store.open(f"{url}/store")
    assert brought(f"{url}/store") == before != set()
