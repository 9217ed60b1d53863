"""Facts about which names were seen, and what tables make of it."""

import json
from dataclasses import asdict, replace

import pytest
import torch

import write_results
from cuao3d.cli import main
from cuao3d.cli.shared import print_rows
from cuao3d.distill import distill
from cuao3d.errors import InputError, NotFoundError
from cuao3d.fusion import Visibility, sample_cells
from cuao3d.labels import label_set
from cuao3d.recipes import mini
from cuao3d.run import load_run, load_student
from cuao3d.scene import Scene
from cuao3d.store import Store, TeacherCard
from cuao3d.student import Student
from cuao3d.teachers import known, vocabulary_of
from cuao3d.vocabulary import Vocabulary, by_seen, harmonic_mean, read_vocabulary

SCANNET20 = label_set("scannet20")


@pytest.mark.parametrize(
    "word",
    ["Sofa", "sofas", " a sofa", "SOFA", "a sofa in a scene", "a photo of a sofa", "the sofa"],
)
def test_a_name_is_seen_however_it_is_written(word):
    assert "sofa" in Vocabulary((word,))


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("night_stand", "nightstands"), ("book shelves", "bookshelf"), ("t-shirt", "T shirt"), ("benches", "bench"),
        ("boxes", "box"), ("batteries", "battery"), ("glasses", "glass"), ("knives", "knife"),
        ("wine_glass", "wine glasses"),
        ("refridgerator", "refrigerator"), ("an armchair in a scene", "armchair"), ("a photo of an ottoman", "ottoman"),
    ],
)  # fmt: skip
def test_plural_spaces_and_underscores_do_not_matter(word, name):
    assert name in Vocabulary((word,))
    assert word in Vocabulary((name,))


@pytest.mark.parametrize(
    ("word", "name"), [("bath", "bathtub"), ("office chair", "chair"), ("glas", "glass"), ("desk", "disk"), ("", "a")]
)
def test_another_word_is_another_word(word, name):
    assert name not in Vocabulary((word,))
    assert name not in Vocabulary(())


def with_synonyms():
    return replace(SCANNET20, synonyms=tuple(("couch",) if name == "sofa" else () for name in SCANNET20.names))


def test_a_class_is_seen_by_one_of_its_synonyms():
    held = dict(zip(SCANNET20.names, Vocabulary(("Couches", "wall")).holds(with_synonyms()), strict=True))
    assert [name for name, seen in held.items() if seen] == ["wall", "sofa"]


def test_means_over_seen_and_unseen_names_by_hand():
    iou = {"wall": 60.0, "sofa": 30.0, "bed": 20.0, "desk": 0.0}
    divided = by_seen(iou, with_synonyms(), Vocabulary(("couch", "wall", "bathtub"), "words.txt"))
    assert (divided.vocabulary, divided.seen, divided.unseen) == (
        "words.txt, 3 words",
        ("wall", "sofa"),
        ("bed", "desk"),
    )
    assert (divided.miou_seen, divided.miou_unseen, divided.harmonic) == (45, 10, pytest.approx(2 * 45 * 10 / 55))
    assert divided.reason == ""
    assert (harmonic_mean(0.0, 0.0), harmonic_mean(10.0, 0.0), harmonic_mean(None, 3.0)) == (0, 0, None)


def test_where_one_side_is_empty_the_mean_is_missing_and_the_reason_is_given():
    iou = {"wall": 60.0, "sofa": 30.0}
    open_ = by_seen(iou, SCANNET20, Vocabulary())
    assert (open_.vocabulary, open_.seen, open_.miou_seen, open_.miou_unseen) == ("no vocabulary", (), None, 45)
    assert (open_.harmonic, open_.reason) == (None, "no evaluated name is seen")
    closed = by_seen(iou, SCANNET20, Vocabulary(SCANNET20.names, "scannet20"))
    assert (closed.miou_seen, closed.miou_unseen, closed.reason) == (45, None, "no evaluated name is unseen")
    strange = by_seen(iou, SCANNET20, None)
    assert (strange.vocabulary, strange.seen, strange.unseen) == ("not known", None, None)
    assert (strange.miou_seen, strange.reason) == (None, "the vocabulary is not known")


def test_words_come_from_a_label_set_or_a_text_file(tmp_path):
    nyu40, texts = read_vocabulary("nyu40", label_set)
    assert (nyu40.source, texts) == ("nyu40", label_set("nyu40").prompts)
    assert set(label_set("nyu40").names) <= set(nyu40.words)
    # "19 of the 20 evaluated names are training words": shower curtains are NYU40's too, "other" is said in its prompt.
    assert nyu40.holds(SCANNET20) == (True,) * 20
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffsofa\n\n# tree\n  floor   lamp\nsofa\n", encoding="utf-8")
    vocabulary, texts = read_vocabulary(str(file), label_set)
    assert vocabulary == Vocabulary(("sofa", "floor lamp"), str(file))
    assert texts == ("a sofa in a scene", "a floor lamp in a scene")


def test_a_csvs_synonyms_and_questions_are_no_training_words_but_its_prompts_are(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("id,name,r,g,b,prompt,synonyms,questions\n1,sofa,1,2,3,a couch,settee,somewhere to sit\n")
    vocabulary, texts = read_vocabulary(str(path), label_set)
    assert (vocabulary.words, texts) == (("sofa", "a couch"), ("a couch",))


def test_a_file_without_words_is_told(tmp_path):
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(InputError, match=r"has no word in it"):
        read_vocabulary(str(tmp_path / "empty.txt"), label_set)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(InputError, match=r"no text in UTF-8"):
        read_vocabulary(str(tmp_path / "latin.txt"), label_set)
    with pytest.raises(NotFoundError, match=r"There is no file of words none\.txt"):
        read_vocabulary("none.txt", label_set)
    with pytest.raises(InputError, match=r"Unknown label set"):
        read_vocabulary("none", label_set)


def test_a_teachers_words_are_those_of_its_weights(tmp_path, monkeypatch):
    card = {"sha256": "1" * 64, "vocabulary": ["sofa", "a soft couch"]}
    (tmp_path / "mini_lseg.json").write_text(json.dumps(card))
    (tmp_path / "mini_dino.json").write_text(json.dumps({"sha256": "2" * 64}))
    monkeypatch.setattr(known, "WEIGHTS", tmp_path)
    assert vocabulary_of("mini-lseg", "1" * 64) == Vocabulary(("sofa", "a soft couch"), "mini-lseg")
    assert vocabulary_of("mini-dino", "2" * 64) is vocabulary_of("mine", "3" * 64) is vocabulary_of("x", None) is None
    photo = next(iter(known.CLASS_LISTS))
    assert "sofa" in vocabulary_of("ade20k", photo)
    (tmp_path / "mini_lseg.json").write_text(json.dumps(card | {"vocabulary": "sofa"}))
    with pytest.raises(InputError, match=r"The vocabulary of mini-lseg"):
        vocabulary_of("mini-lseg", "1" * 64)


@pytest.fixture
def one_scene(tmp_path):
    store = Store.create(tmp_path / "store", cell=0.05, teachers={"mini-lseg": TeacherCard(4, text="minilm-centred")})
    points = torch.rand(60, 3, generator=torch.Generator().manual_seed(0))
    samples = sample_cells(points, store.cell)
    count = len(samples.index_of_sample)
    labels = torch.zeros(len(points), dtype=torch.int64)
    store.add_scene(
        Scene("a", points, (), labels=labels, label_set="scannet20"),
        samples,
        Visibility((), torch.ones(count, dtype=torch.int64)),
        {"mini-lseg": torch.eye(4)[torch.arange(count) % 3]},
    )
    return store


def train(store, out, words):
    return distill(store, replace(mini(teachers=store.teachers, num_steps=1), words=words), out)


def test_a_run_records_its_words_and_says_which_are_evaluated(one_scene, tmp_path, toy_words, capsys):
    toy_words(4)
    (tmp_path / "words.txt").write_text("sofas\ntree\nWALL\nengine\n")
    run = train(one_scene, tmp_path / "run", str(tmp_path / "words.txt"))
    expected = Vocabulary(("sofas", "tree", "WALL", "engine"), str(tmp_path / "words.txt"))
    summary = json.loads((run / "run.json").read_text())
    assert summary["vocabulary"] == json.loads((run / "config.json").read_text())["vocabulary"] == {
        "words": list(expected.words), "source": expected.source
    }  # fmt: skip
    assert Student.load(run / "student.safetensors").vocabulary == load_run(run).vocabulary == expected
    said = " ".join(capsys.readouterr().err.split())
    assert "2 of the 20 names of scannet20 are training words and count as seen in every table: wall, sofa" in said
    # Features point along three of the four words.
    assert summary["words_without_points"] == ["a engine in a scene"]
    assert "no training point is nearest to 1 of the words: a engine in a scene" in said


def test_no_vocabulary_is_an_empty_list(one_scene, tmp_path, capsys):
    run = train(one_scene, tmp_path / "run", None)
    summary = json.loads((run / "run.json").read_text())
    assert summary["vocabulary"] == {"words": [], "source": ""}
    assert load_run(run).vocabulary == load_student(run / "student.safetensors").vocabulary == Vocabulary()
    assert "training words" not in capsys.readouterr().err


def test_other_words_in_the_same_file_make_another_run(one_scene, tmp_path, toy_words):
    toy_words(4)
    file = tmp_path / "words.txt"
    file.write_text("sofa\ntree\n")
    train(one_scene, tmp_path / "run", str(file))
    train(one_scene, tmp_path / "run", str(file))
    file.write_text("sofa\nbed\n")
    with pytest.raises(InputError, match=r"holds another run"):
        train(one_scene, tmp_path / "run", str(file))


def test_a_student_that_does_not_tell_has_no_known_words(tmp_path):
    student = Student({"mini-lseg": 4}, "MinkUNet14Mini")
    student.voxel_size = 0.1
    student.save(tmp_path / "student.safetensors")
    assert load_student(tmp_path / "student.safetensors").vocabulary is None


def test_an_earlier_versions_run_has_the_words_that_its_configuration_names():
    from cuao3d.run import _vocabulary_of

    assert _vocabulary_of({"voxel_size": 1.0, "words": "nyu40"}) == read_vocabulary("nyu40", label_set)[0]
    assert _vocabulary_of({"voxel_size": 1.0, "words": None}) == Vocabulary()
    assert _vocabulary_of({"voxel_size": 1.0, "words": "gone.csv"}) is _vocabulary_of({"voxel_size": 1.0}) is None
    assert asdict(Vocabulary(("a",), "b")) == {"words": ("a",), "source": "b"}


def printed(rows, capsys):
    print_rows([{**TABLE_ROW, **row} for row in rows])
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


TABLE_ROW = dict.fromkeys(("miou", "macc", "fmiou", "miou_official"), 1.0) | {
    "model": "run", "split": "val", "scenes": "2 scenes"
}  # fmt: skip


def test_tables_on_the_console_say_what_was_seen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    iou = {"wall": 60.0, "sofa": 30.0}
    half, none = Vocabulary(("walls", "tree"), "mine.txt"), Vocabulary()
    divided = {"by_student": asdict(by_seen(iou, SCANNET20, half)), "by_teacher": asdict(by_seen(iou, SCANNET20, None))}
    lines = printed([{"readout": "distilled", **divided}], capsys)
    assert "run distilled student: mine.txt, 2 words 60.0 30.0 40.0" in lines
    assert "run distilled teacher: not known - - -" in lines
    assert "seen by the student (mine.txt, 2 words): wall; unseen: sofa" in lines
    divided = {"by_student": asdict(by_seen(iou, SCANNET20, none))}
    lines = printed([{"readout": "distilled", **divided}], capsys)
    assert "run distilled student: no vocabulary - 45.0 -" in lines
    assert "student (no vocabulary): all 2 evaluated names are unseen" in lines


def test_pages_of_results_say_what_was_seen():
    iou = {"wall": 60.0, "sofa": 30.0}
    rows = [
        {"by_student": asdict(by_seen({**iou, "sofa": sofa}, SCANNET20, Vocabulary(("wall",), "mine.txt")))}
        for sofa in (30.0, 50.0)
    ]
    assert (
        write_results._by_seen(rows, "by_student") == f"mine.txt, 1 words | 60.0 / 40.0 / {(40 + 6000 / 110) / 2:.1f}"
    )
    nothing = [{"by_student": asdict(by_seen(iou, SCANNET20, Vocabulary()))}]
    assert write_results._by_seen(nothing, "by_student") == "no vocabulary | – / 45.0 / –"
    assert write_results._by_seen([{}], "by_student") == "not recorded | "
    about = {"model": "x", "readout": "distilled", "split": "val"}
    found = [{**about, "retrieval": {"questions": {"ap": ap, "ap_shuffled": 5.0, "auroc": 0.8}}} for ap in (30.0, 40.0)]
    assert (
        write_results._retrieval([{"rows": [row]} for row in found])[-1]
        == "| x | distilled | questions | 35.0 | 5.0 | 0.80 |"
    )
    assert write_results._retrieval([{"rows": [about]}]) == []


LABELS = """id,name,r,g,b,synonyms,questions
0,wall,1,2,3,partition,
1,sofa,1,2,4,couch,somewhere to sit
2,tree,1,2,5,,
"""


@pytest.mark.parametrize(
    ("words", "seen"), [("sofa\ntree", ["sofa"]), pytest.param("engine", [], marks=pytest.mark.slow)]
)
def test_the_command_line_trains_with_a_vocabulary_and_evaluates_by_it(tmp_path, capsys, words, seen):
    """Words among the evaluated names, and words that are none of them."""
    (tmp_path / "mine.csv").write_text(LABELS)
    (tmp_path / "table_names.txt").write_text("wall\nsofa\ntree\nengine\ncouch\nsomewhere to sit\npartition")
    torch.save(torch.eye(4)[[0, 1, 2, 3, 1, 1, 0]] + 0.01 * torch.rand(7, 4), tmp_path / "table.pt")
    card = TeacherCard(4, text=f"table:{tmp_path / 'table.pt'}")
    store = Store.create(tmp_path / "store", cell=0.05, teachers={"mine": card})
    points = 3 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    labels = (points[:, 0] > 1.5).long()
    samples = sample_cells(points, store.cell)
    count = len(samples.index_of_sample)
    for name, split in (("a", "train"), ("b", "val")):
        store.add_scene(
            Scene(name, points, (), labels=labels, label_set=str(tmp_path / "mine.csv"), split=split),
            samples,
            Visibility((), torch.ones(count, dtype=torch.int64)),
            {"mine": torch.eye(4)[labels[samples.index_of_sample]]},
        )
    (tmp_path / "words.txt").write_text(words)
    told = ["--recipe", "closed-set", "--config.words", str(tmp_path / "words.txt")]
    run, out = str(tmp_path / "run"), tmp_path / "rows.json"
    small = ["--config.architecture", "MinkUNet14Mini", "--voxel-size", "0.3", "--steps", "1"]
    assert main(["distill", str(store.path), "--out", run, *told, *small]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert ("2 of the 3 names of mine are training words" in said) == (seen == ["sofa"])
    assert main(["evaluate", str(store.path), "--run", run, "--labels", "mine", "--json", str(out)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    distilled, joined = json.loads(out.read_text())["rows"]
    assert distilled["by_student"]["seen"] == joined["by_student"]["seen"] == seen
    assert len(distilled["by_student"]["unseen"]) == 2 - len(seen)
    assert set(distilled["retrieval"]) == {"synonyms", "questions"}
    assert joined["retrieval"]["questions"]["queries"][0]["is_seen"] == (seen == ["sofa"])
    assert "AUROC" in printed
    overlapping = ["evaluate", str(store.path), "--run", run, "--labels", "mine", "--split", "all", "--json", str(out)]
    assert main(overlapping) == 2
    assert f"scored on: {', '.join(store.names('train'))}. Choose" in " ".join(capsys.readouterr().err.split())
    assert main([*overlapping, "--allow-overlap"]) == 0
    assert json.loads(out.read_text())["rows"][0]["trained_on"] == list(store.names("train"))
    if not seen:
        assert distilled["by_student"]["harmonic"] is None
        assert distilled["by_student"]["reason"] == "no evaluated name is seen"
