"""What the viewer shows, without a browser: layers, answers, clicks, exports, and work that is out of date."""

import shutil
import socket
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import PICTURE, make_synthetic_scene
from cuao3d import cli
from cuao3d.errors import InputError, NotFoundError, NotInstalledError, UserError
from cuao3d.figures.palette import palette
from cuao3d.figures.segments import of_lifted, segment
from cuao3d.formats.ply import read_ply
from cuao3d.query import MIN_POINTS
from cuao3d.view.asking import MOST_LETTERS, MOST_QUESTIONS, Question, read_questions
from cuao3d.view.layers import LAYERS, Layers
from cuao3d.view.models import ENCODING, OneAtATime, open_models
from cuao3d.view.painted import thin
from cuao3d.view.pane import Pane
from cuao3d.view.server import Viewer, warn_of_host
from cuao3d.view.session import NOTHING_BESIDE, Session, Wanted, first_height
from cuao3d.view.worker import Newest
from viewed import CLASSES, make_session, picture_of

NAME = "synthetic"


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return make_session(tmp_path_factory.mktemp("viewed"))


def seen_as(session: Session, **wanted: object):
    (picture,) = session.picture(Wanted(scene=NAME, model="colours", **wanted))
    return picture


def is_warm(picture) -> torch.Tensor:
    """Which points glow: the cold ones are grey or, unseen, a little blue."""
    red, blue = picture.colors[:, 0].int(), picture.colors[:, 2].int()
    return red > blue + 40


def test_questions_are_separated_by_semicolons_and_exceptions_follow_not():
    assert read_questions(" a chair ,not an office chair, NOT a stool;a table; ;a table ") == (
        Question("a chair", ("an office chair", "a stool")),
        Question("a table"),
    )
    assert read_questions(" ;; \n\t") == ()
    assert read_questions("knot, nothing") == (Question("knot, nothing"),)
    assert str(read_questions("a, not b, not c")[0]) == "a, not b, not c"


def test_hostile_questions_are_refused_or_shown_as_they_are():
    (question,) = read_questions("<img src=x onerror=alert(1)> \N{DOG FACE} \x1b[31m")
    assert question.words == "<img src=x onerror=alert(1)> \N{DOG FACE} \\x1b[31m"
    for text in ("x" * (MOST_LETTERS + 1), "x" * 10_000_000, ";".join(map(str, range(MOST_QUESTIONS + 1)))):
        with pytest.raises(InputError, match="at most"):
            read_questions(text)


def test_a_question_makes_the_picture_glow_and_nothing_else(session):
    picture, truth = seen_as(session, layer="relevance", text="picture"), picture_of(session, NAME)
    assert torch.equal(is_warm(picture), truth)
    assert picture.note == "picture: here, relevance 1.00"
    expected = session.models["colours"].ask(session.layers(NAME).scene, ["picture"])[0]
    torch.testing.assert_close(picture.values[truth], expected.relevance[truth], atol=2e-3, rtol=0)


def test_a_threshold_of_all_leaves_the_best_and_one_of_nothing_all_that_is_relevant(session):
    shares = [int(is_warm(seen_as(session, layer="relevance", text="wall", threshold=t)).sum()) for t in (0.2, 0.999)]
    assert shares[0] >= shares[1] > 0
    nothing = seen_as(session, layer="relevance", text="picture", threshold=1.1)
    assert not is_warm(nothing).any()


def test_several_questions_colour_each_point_by_the_one_that_it_answers_best(session):
    picture, truth = seen_as(session, layer="relevance", text="wall; picture"), picture_of(session, NAME)
    assert [name for name, _ in picture.legend] == ["wall", "picture"]
    (second,) = set(map(tuple, picture.colors[truth].tolist()))
    blue, orange = (palette()[index] for index in (0, 1))
    assert (torch.tensor(second) / 255 - orange).abs().max() < 0.25
    first = picture.colors[~truth][picture.values[~truth] > 0.9].float() / 255
    assert len(first) > 100
    assert (first - blue).abs().max() < 0.25


def test_an_exception_takes_off_what_is_as_near_to_it(session):
    layers = session.layers(NAME)
    (plain,) = layers.answers("colours", (Question("picture"),))
    (excepted,) = layers.answers("colours", (Question("picture", ("picture",)),))
    assert plain.peak == pytest.approx(1, abs=1e-3)
    assert excepted.peak == pytest.approx(0, abs=1e-3)
    (other,) = layers.answers("colours", (Question("picture", ("sofa", "wall")),))
    assert (other.verdict, other.words) == ("here", "picture, not sofa, not wall")
    # By hand: cosine with the picture less that with the exception, of what a picture itself would have.
    words = layers.models["colours"].encoder(["picture", "wall"])
    rows = torch.nn.functional.normalize(layers.rows("colours").features.float(), dim=1)
    by_hand = ((rows @ words[0]) - (rows @ words[1])) / (1 - words[0] @ words[1])
    (only,) = layers.answers("colours", (Question("picture", ("wall",)),))
    torch.testing.assert_close(only.relevance, plain.relevance.minimum(by_hand), atol=2e-3, rtol=0)
    assert only.peak == pytest.approx(only.relevance.topk(MIN_POINTS).values[-1].item())


def test_words_that_the_encoder_does_not_know_are_doubted_with_exceptions_too(session):
    class English:
        reads, num_channels, vectors = "English", 3, session.models["colours"].encoder.vectors

        def __call__(self, texts):
            return session.models["colours"].encoder(["sofa" if text == "диван" else text for text in texts])

    asked = replace(session.models["colours"], encoder=English(), _questions={})
    layers = Layers(session.store, {"english": asked}, session.layers(NAME).scene)
    for text in ("диван, not picture", "picture, not диван", "диван"):
        (answer,) = layers.answers("english", read_questions(text))
        assert (answer.verdict, answer.words_known) == ("unsure", False), text
        assert "ask in plain English" in layers.relevance("english", read_questions(text), 0.5).note
    (known,) = layers.answers("english", read_questions("picture, not sofa"))
    assert (known.verdict, known.words_known) == ("here", True)


def test_one_thread_at_a_time_encodes_words(session):
    (opened,) = open_models(session.store, teacher="color", text=session.models["colours"].text).values()
    assert opened.encoder.vectors is opened.encoder.encoder.vectors
    assert torch.equal(opened.encoder(["wall"]), session.models["colours"].encoder(["wall"]))

    class Watched:
        num_channels = 3

        def __call__(self, texts):
            return torch.full((1, 3), float(ENCODING.locked()))

    assert OneAtATime(Watched())(["wall"]).tolist() == [[1, 1, 1]]
    assert not ENCODING.locked()


def test_truth_and_prediction_have_a_legend_whose_entries_can_be_hidden(session):
    truth = seen_as(session, layer="truth")
    assert [name for name, _ in truth.legend] == ["wall", "picture"]
    assert torch.equal(truth.colors[picture_of(session, NAME)][0], (CLASSES.colors[10] * 255).round().byte())
    hidden = seen_as(session, layer="truth", hidden=frozenset({"wall"}))
    assert torch.equal(hidden.drawn, picture_of(session, NAME))
    assert len(hidden.positions) == 144
    predicted = seen_as(session, layer="prediction")
    seen = session.layers(NAME).to_drawn(session.layers(NAME).scene.seen)
    assert [name for name, _ in predicted.legend] == ["wall", "picture", "none"]
    assert torch.equal(predicted.colors[seen], truth.colors[seen])


def test_segments_have_the_colours_of_the_report(session, monkeypatch):
    monkeypatch.setattr("cuao3d.figures.segments.embed", lambda rows, *_, **__: (rows[:, :2], "PCA"))
    layers = session.layers(NAME)
    (expected,) = segment([of_lifted(layers.scene, "color")])
    shown = seen_as(session, layer="segments", described="color")
    assert torch.equal(shown.colors, (palette()[expected.of_point] * 255).round().byte())


def test_numbers_are_those_of_the_store(session):
    scene = session.layers(NAME).scene
    views = seen_as(session, layer="views per point")
    assert torch.equal(views.values, scene.num_views[scene.sample_of_point].float())
    apart = seen_as(session, layer="disagreement between views")
    assert torch.equal(apart.values.isnan(), scene.num_views[scene.sample_of_point] < 2)


def test_layers_that_are_not_there_are_told_why(session):
    layers = session.layers(NAME)
    missing = {layer: reason for layer, reason in layers.offered("colours").items() if reason}
    assert set(missing) == {"confidence", "2D against 3D"}
    for layer in missing:
        with pytest.raises(InputError, match="cannot be shown"):
            layers.paint(layer, "colours")
    for layer, model in (("x", "colours"), ("truth", "nobody else"), ("relevance", "nobody else")):
        with pytest.raises(InputError):
            session.picture(Wanted(NAME, model, layer, text="wall"))
    alone = Session(session.store, {})
    nobody = {layer for layer, reason in alone.layers(NAME).offered("nobody").items() if reason}
    assert nobody >= {"prediction", "relevance", "like the clicked point", "confidence"}
    for layer in set(LAYERS) - nobody:
        assert len(alone.picture(Wanted(NAME, "nobody", layer))) == 1


def test_a_student_is_compared_with_what_was_lifted(session):
    """The student's place is taken by a predictor that says half of what was lifted, and of one sample the opposite."""
    layers = session.layers(NAME)

    class Learned(type(session.models["colours"])):
        def features(self, scene):
            rows = 0.5 * scene.spread(scene.features("color").float())
            rows[scene.seen_samples[3]] *= -1
            return rows

    asked = session.models["colours"]
    learned = Learned(asked.teacher, asked.text, asked.encoder)
    object.__setattr__(learned, "student", SimpleNamespace(heads={"color": None}))
    both = Session(session.store, {"student": learned})
    (picture,) = both.picture(Wanted(NAME, "student", "2D against 3D"))
    sample = layers.scene.sample_of_point
    turned = sample == layers.scene.seen_samples[3]
    seen = layers.scene.seen[sample]
    torch.testing.assert_close(picture.values[turned], torch.full((int(turned.sum()),), -1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(picture.values[seen & ~turned].min(), torch.tensor(1.0), atol=1e-3, rtol=0)
    assert picture.values[~seen].isnan().all()


def test_a_click_meets_the_picture_before_the_wall_and_names_it(session):
    layers, wanted = session.layers(NAME), Wanted(NAME, "colours")
    eye = (torch.tensor([0.0, -1.0, 1.0]) - layers.middle).tolist()
    click = session.click(wanted, eye, [0.0, 2.0, 0.0], None)
    assert picture_of(session, NAME)[click.point]
    assert click.words[0] == ("picture", pytest.approx(1, abs=1e-3))
    behind = session.click(wanted, eye, [0.0, 2.0, 0.0], ~picture_of(session, NAME))
    assert not picture_of(session, NAME)[behind.point]
    assert session.click(wanted, eye, [0.0, -1.0, 0.0], None) is None
    like = seen_as(session, layer="like the clicked point", click=click.point)
    assert torch.equal(is_warm(like), picture_of(session, NAME))


def test_what_is_exported_is_what_is_seen_in_its_place(session, tmp_path):
    picture = seen_as(session, layer="truth", hidden=frozenset({"wall"}), opacity=0.5)
    (tmp_path / "seen.ply").write_bytes(session.export(NAME, [picture]))
    columns = read_ply(tmp_path / "seen.ply")
    scene = session.layers(NAME).scene
    own = scene.labels == PICTURE
    assert torch.equal(torch.stack([torch.tensor(columns[axis]) for axis in "xyz"], 1), scene.points[own])
    mixed = (scene.colors[own] + CLASSES.colors[CLASSES.ids.index(PICTURE)]) / 2
    assert (torch.tensor(columns["red"]) - 255 * mixed[:, 0]).abs().max() <= 1


def test_what_has_changed_since_it_was_shown_is_not_exported(session):
    picture = seen_as(session, layer="truth")
    with pytest.raises(InputError, match="has changed since it was shown"):
        session.export("half", [picture])


def test_a_file_is_named_by_the_scene_that_is_shown_though_another_is_chosen(session):
    sent = []
    pane = Pane.__new__(Pane)
    pane._shown, pane._scene = Wanted(NAME), SimpleNamespace(value="half")
    pane._client = SimpleNamespace(send_file_download=lambda name, *_, **__: sent.append(name))
    pane._send(".ply", b"")
    assert sent == [f"{NAME}.ply"]


def test_a_click_says_why_there_are_no_words(session):
    layers = session.layers(NAME)
    eye = (torch.tensor([0.0, -1.0, 1.0]) - layers.middle).tolist()

    class Few:
        num_channels = 3

        def __call__(self, texts):
            raise InputError(f"The table of words has no {texts[0]!r}.")

    few = Session(session.store, {"few": replace(session.models["colours"], encoder=Few(), _questions={})})
    click = few.click(Wanted(NAME, "few"), eye, [0.0, 2.0, 0.0], None)
    assert click.words == ()
    assert "The table of words has no" in click.nothing
    assert "nobody" in few.click(Wanted(NAME, "x"), eye, [0.0, 2.0, 0.0], None).nothing
    unseen = int((layers.to_drawn(layers.rows("colours").row_of_sample) < 0).nonzero()[0])
    assert "No view saw this point" in layers.about_click("colours", unseen).nothing


def test_two_stand_side_by_side(session):
    two = session.picture(Wanted(NAME, "colours", "truth", beside="photograph"))
    assert [len(one.positions) for one in two] == [585, 585]
    assert not torch.equal(two[0].colors, two[1].colors)
    assert len(session.picture(Wanted(NAME, "colours", "truth", beside=NOTHING_BESIDE))) == 1


@pytest.mark.parametrize("most", [60, 300, 584])
def test_a_large_cloud_is_thinned_to_points_of_its_own_that_cover_it(session, most):
    scene = session.layers(NAME).scene
    kept = thin(scene, most, 0.05)
    assert most / 8 < len(kept) <= most
    assert len(torch.unique(kept)) == len(kept)
    distance = torch.cdist(scene.points, scene.points[kept]).amin(dim=1)
    assert distance.max() < 2.5 * (7.0 / len(kept)) ** 0.5  # 7 square metres of surface, spread evenly
    few = Session(session.store, session.models, most_points=most)
    (picture,) = few.picture(Wanted(NAME, "colours", "relevance", text="picture"))
    assert torch.equal(is_warm(picture), picture_of(few, NAME))


def test_a_ceiling_is_not_drawn_at_first_and_a_wall_is(session):
    assert first_height(session.layers(NAME)) == 1
    plan = torch.cartesian_prod(torch.linspace(0, 4, 41), torch.linspace(0, 3, 31))
    floor, ceiling = (torch.nn.functional.pad(plan, (0, 1), value=height) for height in (0.0, 2.5))
    layers = session.layers(NAME)
    for points, share in ((torch.cat([floor, ceiling]), 1 - 0.3 / 2.5), (torch.cat([floor, ceiling[:200]]), 1)):
        sample = torch.zeros(len(points), dtype=torch.int64)
        bare = {"colors": None, "labels": None, "normals": None, "cameras": ()}
        room = replace(layers.scene, points=points, sample_of_point=sample, **bare)
        assert first_height(Layers(session.store, {}, room)) == pytest.approx(share, abs=0.01)


def test_scenes_that_are_not_there_and_paths_are_refused(session):
    for name in ("missing", "half2"):
        with pytest.raises(NotFoundError, match="not in the store"):
            session.layers(name)
    for name in ("../synthetic", "..", "/etc/passwd", "a/b", "", "\0", "synthetic\n"):
        with pytest.raises(InputError, match="cannot be the name"):
            session.layers(name)


def test_a_store_that_changes_is_read_anew_and_one_that_goes_is_told(tmp_path):
    session = make_session(tmp_path)
    first = session.layers(NAME)
    first.paint("truth", "colours")
    assert session.layers(NAME) is first
    manifest = session.store.path / "scenes" / NAME / "manifest.json"
    manifest.touch()
    assert session.layers(NAME) is not first
    shutil.rmtree(manifest.parent)
    with pytest.raises(NotFoundError, match="not in the store"):
        session.picture(Wanted(NAME, "colours"))
    assert session.scenes() == ("half",)
    assert len(first.paint("truth", "colours").colors) == 585  # what is mapped stays


def test_photographs_are_those_of_the_store_and_other_cameras_are_bare(session):
    shots = session.shots(NAME)
    assert len(shots) == 2
    assert shots[0].image.shape == (48, 64, 3)
    bare = Session(session.store, {}, data=_Frames())
    bare.layers("half").scene.files.pop("photographs.safetensors", None)
    assert all(shot.image is not None for shot in bare.shots("half"))


class _Frames:
    """The data of the scene "half"."""

    names = ("half",)

    def __getitem__(self, index: int):
        return make_synthetic_scene()

    def __len__(self):
        return 1


def test_the_newest_work_replaces_what_waits():
    newest, begun, go, done = Newest("test"), threading.Event(), threading.Event(), []

    def first(is_outdated):
        begun.set()
        go.wait(5)
        done.append(("first", is_outdated()))

    newest.submit(first)
    begun.wait(5)
    newest.submit(lambda _: done.append("never"))
    last = threading.Event()
    newest.submit(lambda is_outdated: (done.append(("last", is_outdated())), last.set()))
    go.set()
    assert last.wait(5)
    assert done == [("first", True), ("last", False)]
    newest.close()
    assert newest.join(5)


def test_a_port_in_use_and_a_host_that_is_not_there_are_told(session):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="in use"):
            Viewer(session, scene=NAME, port=taken.getsockname()[1])
    with pytest.raises(InputError, match="no such host"):
        Viewer(session, scene=NAME, host="no.such.host.invalid")
    with pytest.raises(InputError, match="a number from 0"):
        Viewer(session, scene=NAME, port=70_000)
    with pytest.raises(NotFoundError):
        Viewer(session, scene="missing")


def test_only_hosts_that_others_can_reach_are_warned_of(capsys):
    for host in ("127.0.0.1", "localhost", "::1"):
        warn_of_host(host)
    assert capsys.readouterr().err == ""
    warn_of_host("0.0.0.0")
    assert "no password" in capsys.readouterr().err


def test_garbage_from_a_client_closes_its_connection_and_is_told_in_a_line(session, capsys):
    viser = pytest.importorskip("viser", reason="needs viser: pip install 'cuao3d[view]'")
    from websockets.exceptions import ConnectionClosed
    from websockets.sync.client import connect

    with Viewer(session, scene=NAME) as viewer:
        protocol, address = f"viser-v{viser.__version__}", viewer.url.replace("http", "ws")
        with (
            connect(address, subprotocols=[protocol], max_size=None) as one,
            connect(address, subprotocols=[protocol], max_size=None) as other,
        ):
            one.send(b"\xff" * 1000)
            with pytest.raises(ConnectionClosed):
                list(iter(lambda: one.recv(timeout=20), None))
            assert other.recv(timeout=20), "another client is served all the same"
    told = capsys.readouterr().err
    assert "its connection was closed" in told
    assert "Traceback" not in told


def test_what_is_remembered_does_not_overwrite_what_is_typed_meanwhile(session):
    with Viewer(session, scene=NAME) as viewer, visit(viewer) as (pane, choose):
        for text in ("picture", "wall"):
            pane._text.value = text
            await_(lambda text=text: pane._history[:1] == [text])
        pane._remember("picture")  # its answer is late: "wall" is typed by now
        assert (pane._text.value, pane._past.value) == ("wall", "picture")
        choose(pane._past, "wall")
        choose(pane._past, "picture")
        await_(lambda: pane._text.value == "picture")


@contextmanager
def visit(viewer: Viewer):
    """Open the page without a browser; its pane, and what sets a value there."""
    viser, msgspec = pytest.importorskip("viser"), pytest.importorskip("msgspec")
    from websockets.sync.client import connect

    camera = {"type": "ViewerCameraMessage", "wxyz": (1, 0, 0, 0), "position": (0, 0, 0), "fov": 1.0, "near": 0.01}
    camera |= {"far": 100, "look_at": (0, 0, 1), "up_direction": (0, 0, 1), "image_height": 9, "image_width": 9}
    before, address = set(viewer._panes), viewer.url.replace("http", "ws")
    with connect(address, subprotocols=[f"viser-v{viser.__version__}"], max_size=None) as one:

        def choose(handle, value):
            change = {"type": "GuiUpdateMessage", "uuid": handle._impl.uuid, "updates": {"value": value}}
            one.send(msgspec.msgpack.encode(change))

        one.send(msgspec.msgpack.encode(camera))
        await_(lambda: set(viewer._panes) - before)
        (number,) = set(viewer._panes) - before
        yield viewer._panes[number], choose


def await_(fact):
    end = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def test_without_viser_the_cure_is_told(session, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "viser", None)
    with pytest.raises(NotInstalledError, match=r"cuao3d\[view\]"):
        Viewer(session, scene=NAME)


def test_the_command_opens_the_store_and_serves_on_this_machine_alone(session, tmp_path, capsys, monkeypatch):
    served = {}

    class Served:
        def __init__(self, session, **options):
            served.update(options, models=list(session.models))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            served["stopped"] = True

        url = "http://127.0.0.1:1"

        def wait(self):
            raise KeyboardInterrupt

    monkeypatch.setattr("cuao3d.view.server.Viewer", Served)
    words = session.models["colours"].text
    command = ["view", str(session.store.path), "--text", words, "--scene", "half"]
    assert cli.main(command) == cli.INTERRUPTED
    models = ["lifted features of color"]
    assert served == {"scene": "half", "host": "127.0.0.1", "port": 0, "models": models, "stopped": True}
    assert "http://127.0.0.1:1" in capsys.readouterr().out
    for wrong, told in ((["--run", str(tmp_path / "none")], "none"), (["--data", str(tmp_path / "no")], "no")):
        assert cli.main([*command, *wrong]) == cli.USER_ERROR
        assert told in capsys.readouterr().err


def test_a_store_that_nobody_can_be_asked_about_can_be_looked_at(session):
    assert open_models(session.store) == {}
    with pytest.raises(UserError):
        open_models(session.store, [Path("missing")])
