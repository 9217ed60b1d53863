"""Facts about reproduction: cells are computed once, claims are judged beside their controls."""

import json
from dataclasses import replace
from functools import partial

import pytest

from conftest import make_synthetic_scene
from cuao3d import __version__, recipes
from cuao3d.cli import main
from cuao3d.errors import DiskFullError, InputError, NotFoundError
from cuao3d.reproduce import TABLES, Reproduction
from cuao3d.reproduce.arms import ARMS, MINI
from cuao3d.reproduce.cells import Cell, Cells, Result
from cuao3d.reproduce.claims import HELD, NOT_HELD, OPEN, Verdict, bounds, judge
from cuao3d.reproduce.judgement import make_claims
from cuao3d.reproduce.measures import Place, training
from cuao3d.reproduce.results import make_tables, write_results
from cuao3d.reproduce.worlds import MATTERPORT, PROTOCOLS, ROOMS, Size
from cuao3d.store import Store, TeacherCard
from cuao3d.tables import Cell as Number
from cuao3d.tables import read_tables
from make_fixture_matterport import write_building
from make_fixture_openscene import write_processed
from make_fixture_scannet import write_scan
from write_results import main as write_page


def counted(calls, value, on_step):
    calls.append(value)
    return value


def fail(error, on_step):
    raise error


def filled(folder, *cells):
    kept = Cells(folder)
    kept.fill(cells, "testing", 1)
    return kept


def test_a_cell_is_computed_once_and_anew_when_what_it_depends_on_is_new(tmp_path):
    calls = []
    cell = partial(Cell, "rooms/a-0", partial(counted, calls, 7))
    assert filled(tmp_path, cell({"store": "x"})).value("rooms/a-0") == 7
    assert filled(tmp_path, cell({"store": "x"})).value("rooms/a-0") == 7
    assert calls == [7]
    filled(tmp_path, cell({"store": "y"}))
    assert calls == [7, 7]


def test_a_cell_of_another_version_is_computed_anew(tmp_path, monkeypatch):
    calls = []
    cell = Cell("a", partial(counted, calls, 1))
    filled(tmp_path, cell)
    monkeypatch.setattr("cuao3d.reproduce.cells.__version__", "0.0.0")
    filled(tmp_path, cell)
    assert len(calls) == 2


def test_a_cell_that_fails_costs_itself_alone_and_is_tried_again(tmp_path):
    calls = []
    good, bad = Cell("good", partial(counted, calls, 1)), Cell("bad", partial(fail, InputError("no labels")))
    kept = filled(tmp_path, bad, good)
    assert (kept.value("good"), kept.value("bad"), kept.failures) == (1, None, {"bad": "no labels"})
    mended = filled(tmp_path, Cell("bad", partial(counted, calls, 2)), good)
    assert (mended.value("bad"), mended.failures, calls) == (2, {}, [1, 2])


def test_a_full_disk_ends_it_all(tmp_path):
    with pytest.raises(DiskFullError):
        filled(tmp_path, Cell("a", partial(fail, DiskFullError("full"))))


def test_a_damaged_cell_is_computed_anew(tmp_path):
    calls = []
    cell = Cell("a", partial(counted, calls, 1))
    filled(tmp_path, cell)
    (tmp_path / "a.json").write_text('{"key": ')
    assert filled(tmp_path, cell).value("a") == 1
    assert len(calls) == 2
    assert json.loads((tmp_path / "a.json").read_text())["value"] == 1


def test_bounds_are_those_of_student():
    assert bounds([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)  # 4.303 / sqrt(3)
    assert bounds([1.0]) == (-float("inf"), float("inf"))


@pytest.mark.parametrize(
    ("gains", "controls", "word"),
    [
        ((), {}, OPEN),
        ((3.0,), {}, OPEN),
        ((3.0, 3.1, 3.2), {}, HELD),
        ((3.0, 3.1, 3.2), {"shuffled": (4.0, 4.0, 4.0)}, NOT_HELD),
        ((3.0, 3.1, 3.2), {"shuffled": (0.0, 0.1, 0.0), "oracle": (9.0, 9.1, 9.0), "headroom": 2.0}, HELD),
        ((-0.1, 0.0, 0.1), {}, NOT_HELD),  # at most 0.2
        ((-1.0, 0.0, 1.0), {}, OPEN),  # up to 2.5: too few to tell
        ((-9.0, -9.1, -9.2), {}, NOT_HELD),
        ((-0.1, 0.0, 0.1), {"oracle": (-1.0, 0.0, 1.0)}, OPEN),
        ((-0.1, 0.0, 0.1), {"oracle": (5.0, 5.1, 5.2), "headroom": 4.9}, OPEN),
        ((-0.1, 0.0, 0.1), {"oracle": (5.0, 5.1, 5.2), "headroom": 5.1}, NOT_HELD),
    ],
)
def test_a_claim_is_judged_beside_its_controls(gains, controls, word):
    assert judge(gains, **controls).word == word


def test_an_arm_gets_the_teachers_that_stand_for_its_own():
    assert ARMS["conditioned, shuffled"].names(MINI) == ("mini-lseg", "shuffled-mini-dino", "shuffled-mini-diffusion")
    assert ARMS["conditioned, oracle"].names(MINI) == ("mini-lseg", "oracle")
    assert ARMS["conditioned"].names({}) == ("lseg", "dinov2", "stable_diffusion")


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """A miniature ScanNet: a scan of its training list and one of its validation list."""
    folder = tmp_path_factory.mktemp("scannet")
    for name in ("scene0000_00", "scene0568_00"):
        write_scan(make_synthetic_scene(), folder / "scans" / name, color="png")
    return folder


@pytest.fixture
def small(monkeypatch):
    """Students of the real datasets are small, and no figure is drawn, as figures have facts of their own."""
    monkeypatch.setattr("cuao3d.reproduce.results.draw_figures", lambda done: [])
    changes = {"architecture": "MinkUNet14Mini", "voxel_size": 0.1}
    for recipe in ("openscene", "supervised"):
        whole = getattr(recipes, recipe)
        monkeypatch.setattr(f"cuao3d.recipes.{recipe}", lambda whole=whole, **given: replace(whole(**given), **changes))


def reproduced(folder, data, *options, world="scannet", asked="zero-shot"):
    """Run the command with one small teacher and one step; return its exit code and its tables."""
    arguments = ["reproduce", world, "--data", str(data), "--teachers", "mini-lseg", "--steps", "1"]
    code = main([*arguments, "--tables", asked, "--out", str(folder), "--workers", "1", *options])
    return code, {table.name: table for table in read_tables(folder)}


@pytest.mark.slow
def test_a_dataset_of_ones_own_gets_the_tables_with_the_published_rows_and_further_seeds_add(scans, tmp_path, small):
    code, tables = reproduced(tmp_path / "out", scans)
    assert code == 0
    (ours,) = (row for row in tables["zero-shot"].rows if row[:2] == ("LSeg alone (OpenScene's way)", "distilled"))
    assert ours[2].n == 1
    assert any(row[0] == "CUA-O3D" and row[2] == 55.3 for row in tables["zero-shot"].rows)
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}
    code, tables = reproduced(tmp_path / "out", scans, "--seeds", "2")
    (both,) = (row for row in tables["zero-shot"].rows if row[:2] == ("LSeg alone (OpenScene's way)", "distilled"))
    assert (both[2].n, both[2].half_width is not None) == (2, True)
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    for file in ("report.html", "results.json", "zero-shot.csv", "zero-shot.tex"):
        assert (tmp_path / "out" / file).stat().st_size > 0


def raw_matterport(folder):
    for name in (TRAINED, TESTED):
        write_building([make_synthetic_scene()], folder / "v1" / "scans" / name)
    return folder


def processed(dataset, folder):
    """OpenScene's preprocessed layout of a dataset."""
    region = ("", "") if dataset == "scannet" else ("_region0", "_region0")
    names = ("scene0000_00", "scene0568_00") if dataset == "scannet" else (TRAINED, TESTED)
    splits = ("train", "val" if dataset == "scannet" else "test")
    scenes = [
        replace(make_synthetic_scene(), name=n + r, split=s) for n, r, s in zip(names, region, splits, strict=True)
    ]
    write_processed(scenes, folder, dataset=dataset)
    return folder / f"{dataset}_3d"


TRAINED, TESTED = "17DRP5sb8fy", "2t7WUuJeko7"
"""Buildings of the official training and test lists."""

K21, K160 = ("matterport21",), ("matterport21", "matterport40", "matterport80", "matterport160")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "write", "labels", "published", "code"),
    [
        ("matterport", raw_matterport, K160, 42.2, 0),
        ("matterport", partial(processed, "matterport"), K21, 42.2, 3),
        ("scannet", partial(processed, "scannet"), ("scannet20",), 55.3, 3),
    ],
)
def test_raw_buildings_and_preprocessed_folders_get_the_same_tables(
    world, write, labels, published, code, tmp_path, small, capsys
):
    found, tables = reproduced(tmp_path / "out", write(tmp_path / "data"), world=world, asked="zero-shot,vocabularies")
    assert found == code
    rows = {row[:2]: row[2] for row in tables["zero-shot"].rows}
    assert rows["CUA-O3D", "2d3d"] == published
    for line in (
        ("lifted features", "fused"),
        ("LSeg alone (OpenScene's way)", "distilled"),
        ("supervised", "supervised"),
    ):
        assert 0 <= rows[line].mean <= 100
    of_own = {row[0] for row in tables["vocabularies"].rows if isinstance(row[3], Number)}
    assert of_own == set(labels)
    said, page = capsys.readouterr().err, (tmp_path / "out" / "report.html").read_text()
    left_out = {"scannet": ["scannet200"], "matterport": [name for name in K160 if name not in labels]}[world]
    assert all(f"left out {name}: the labels are of" in said and f"<b>{name}</b>" in page for name in left_out)


def test_labels_that_are_too_coarse_for_a_set_leave_it_out(synthetic_store):
    found, left_out = replace(MATTERPORT, split="train").scored_in(synthetic_store)
    assert found.labels == K21
    assert list(left_out) == ["matterport40", "matterport80", "matterport160"]
    assert "cuao3d fuse DATA --annotations matterport160" in left_out["matterport160"]


def test_the_teachers_of_a_store_play_their_own_parts_whatever_their_order(tmp_path):
    words, none = TeacherCard(3, text="minilm"), TeacherCard(3)
    store = Store.create(tmp_path / "own", cell=0.05, teachers={"stable_diffusion": none, "lseg": words})
    assert MATTERPORT.named_by(store).stand_in == {"lseg": "lseg", "stable_diffusion": "stable_diffusion"}
    store = Store.create(tmp_path / "mine", cell=0.05, teachers={"mine": none, "talkative": words})
    assert MATTERPORT.named_by(store).stand_in == {"lseg": "talkative", "dinov2": "mine"}


def test_what_nothing_can_be_scored_in_is_refused_before_anything_is_trained(synthetic_store, tmp_path):
    own = tmp_path / "own.csv"
    own.write_text("id,name,r,g,b\n0,thing,0,0,0\n")
    with pytest.raises(InputError, match="cannot be scored: Labels of scannet20 cannot be converted to own"):
        replace(MATTERPORT, split="train", labels=(str(own),)).scored_in(synthetic_store)
    with pytest.raises(InputError, match=r"no test scene with labels \(0 without\)"):
        MATTERPORT.scored_in(synthetic_store)


def scored(miou, readout="distilled"):
    return {"readout": readout, "ensemble": None, "passes": 1, "miou": miou}


def done_with(folder, asked, values):
    """A reproduction of three seeds whose cells are given by name, a `%d` in which stands for the seed."""
    done = Reproduction(ROOMS, folder, 3, asked, Size(), PROTOCOLS["paper"], 1)
    for name, of_seed in values.items():
        for seed, rows in enumerate(of_seed):
            done.cells.results[name.replace("%d", str(seed))] = Result(rows, None, 1.0, 100)
    return done


def test_the_ablation_compares_students_of_the_same_seed_and_its_claims_stand_beside_their_controls(tmp_path):
    mious = {
        "LSeg only": (20, 22, 24),
        "conditioned": (21, 23, 25),
        "conditioned, shuffled": (19, 21, 23),
        "conditioned, oracle": (28, 30, 32),
        "all + sigma": (15, 16, 17),
        "all, equal": (15.1, 16, 16.9),
    }
    cells = {f"controlled/{arm}-%d/made100": [[scored(one)] for one in of] for arm, of in mious.items()}
    probes = [scored(20, "probe: lifted mini-lseg"), scored(26, "probe: lifted concatenated")]
    cells["rooms/lifted-%d/linear-probe"] = [probes] * 3
    tables = {table.name: table for table in make_tables(done_with(tmp_path, ("ablation",), cells))}
    ours = next(row for row in tables["ablation"].rows if row[0] == "conditioned")
    assert (ours[1].mean, ours[2].mean, ours[2].half_width) == (23, 1, 0)
    assert "Headroom of the teachers: 6.0 mIoU" in tables["ablation"].note
    verdicts = {row[0]: row[1:] for row in tables["claims"].rows}
    gain, beside, verdict, _ = verdicts["three teachers beat LSeg alone, conditioned"]
    assert (gain, beside, verdict) == ("+1.0 ± 0.0 (3)", "oracle +8.0 ± 0.0 (3); shuffled -1.0 ± 0.0 (3)", HELD)
    assert verdicts["learned noise levels beat equal weights"][2] == NOT_HELD
    assert verdicts["demeaning helps"][2:] == (OPEN, "not run")


def both(distilled, together):
    return [scored(distilled), {**scored(together, "2d3d"), "ensemble": "unit-average"}]


def test_2d3d_and_transfers_are_judged_between_students_of_the_same_seed(tmp_path):
    paper, ours = [both(20, 23), both(30, 33), both(40, 43)], [both(19, 0), None, both(39, 0)]
    cells = {
        "rooms/all + sigma + demean-%d/made100": paper,
        "rooms/conditioned-%d/made100": ours,
        "rooms/lifted/made100": [[scored(31, "fused")]],
        "rooms/LSeg only-%d/in-houses-matterport21": [[scored(10)], [scored(20)], [scored(30)]],
        "rooms/all + sigma + demean-%d/in-houses-matterport21": [[scored(12)], [scored(22)], [scored(32)]],
        "rooms/lifted-%d/linear-probe": [
            [scored(20, "probe: lifted mini-lseg"), scored(26, "probe: lifted concatenated")]
        ],
        "houses/LSeg only-%d/in-rooms-made100": [[scored(10)], [scored(10)], [scored(10)]],
        "houses/conditioned-%d/in-rooms-made100": [[scored(9)], [scored(8)], [scored(7)]],
    }
    verdicts = {one.text: one for one in make_claims(done_with(tmp_path, ("zero-shot", "cross-dataset"), cells))}
    assert verdicts["2D3D beats 3D"].gains == (3, 3, 3)
    assert verdicts["2D3D beats 3D"].verdict.word == HELD
    assert verdicts["2D3D beats 3D"].beside == {"lifted features alone": (11, 1, -9)}
    assert verdicts["(ours) conditioning beats the paper's way"].gains == (-1, -1)  # the second seed of ours failed
    there = verdicts["three teachers beat LSeg alone, in the paper's way, from rooms to houses"]
    assert (there.gains, there.verdict.word) == ((2, 2, 2), HELD)
    back = verdicts["three teachers beat LSeg alone, conditioned, from houses to rooms"]
    assert (back.gains, back.verdict.word) == ((-1, -2, -3), NOT_HELD)
    assert verdicts["three teachers beat LSeg alone, conditioned, from rooms to houses"].verdict.why == "not run"


def test_the_probe_of_all_heads_is_compared_with_the_best_head_of_its_seed_and_with_the_baseline(tmp_path):
    def probes(together, *heads):
        found = {"probe: concatenated": together, "probe: averaged": 99, "control: shuffled labels": 1}
        return [scored(miou, name) for name, miou in {**found, **heads_of(heads)}.items()]

    def heads_of(mious):
        return {f"probe: head {index}": miou for index, miou in enumerate(mious)}

    cells = {
        "rooms/conditioned-%d/linear-probe": [probes(30, 29, 20), probes(40, 30, 41), probes(50, 48, 48)],
        "rooms/LSeg only-%d/linear-probe": [[scored(25, "probe: head lseg")], [scored(35, "probe: head lseg")], None],
    }
    heads, base = make_claims(done_with(tmp_path, ("linear-probe",), cells))
    assert (heads.gains, base.gains) == ((1, -1), (5, 5))
    assert (heads.verdict.word, base.verdict.word) == (OPEN, HELD)  # two seeds, on either side of nothing
    assert base.beside == {"shuffled": (-24, -34)}


def test_geometry_is_judged_beside_guesses_that_see_no_feature(tmp_path):
    def errors(lseg, dino, diffusion, *, quantity="depth", unit="metres"):
        of = {
            "probe: lifted mini-lseg": lseg,
            "probe: lifted mini-dino": dino,
            "probe: lifted mini-diffusion": diffusion,
        }
        of |= {"control: mean": 0.9, "control: place in the image": 0.5}
        return [{"quantity": quantity, "unit": unit, "readout": name, "error": error} for name, error in of.items()]

    cells = {"rooms/lifted-%d/geometry": [errors(0.6, 0.4, 0.55), errors(0.7, 0.5, 0.65)]}
    dino, diffusion = make_claims(done_with(tmp_path, ("geometry",), cells))
    assert dino.text == "DINOv2 knows depth better than LSeg (less error, cm)"
    assert dino.gains == pytest.approx((20, 20))
    assert dino.beside["blind"] == pytest.approx((10, 20))
    assert dino.verdict.word == HELD
    assert diffusion.gains == pytest.approx((5, 5))
    assert diffusion.verdict == Verdict(NOT_HELD, "a guess that sees no feature gains as much")


def test_the_claims_of_the_paper_are_all_judged_by_a_whole_reproduction(tmp_path):
    probes = [{"quantity": "normal", "unit": "degrees", "readout": name, "error": 20.0} for name in GEOMETRY]
    done = done_with(tmp_path, TABLES, {"rooms/lifted-%d/geometry": [probes]})
    texts = [one.text for one in make_claims(done)]
    for part in (
        "three teachers beat LSeg alone, in the paper's way",
        "learned noise levels beat equal weights",
        "demeaning helps",
        "2D3D beats 3D",
        "the probe of all heads beats that of the best head",
        "the probe of all heads beats that of LSeg's student",
        "three teachers beat LSeg alone, in the paper's way, from rooms to houses",
        "DINOv2 knows normal better than LSeg (less error, degrees)",
    ):
        assert part in texts


GEOMETRY = ("probe: lifted mini-lseg", "probe: lifted mini-dino", "control: mean")


def test_a_cell_that_failed_leaves_its_seed_out_and_is_not_zero(tmp_path):
    cells = {"controlled/LSeg only-%d/made100": [[scored(20)], None, [scored(24)]]}
    (ablation, *_) = make_tables(done_with(tmp_path, ("ablation",), cells))
    assert (ablation.rows[0][1].mean, ablation.rows[0][1].n) == (22, 2)


def test_weights_that_collapse_are_a_result_and_no_failure(tmp_path, synthetic_store):
    config = recipes.mini(teachers=synthetic_store.teachers, num_steps=2)
    config = replace(config, architecture="MinkUNet14Mini", voxel_size=0.1, weighting="free", sigma_lr=10.0)
    place = Place.of(synthetic_store, "train")
    cells = Cells(tmp_path)
    cells.fill([training("controlled/free weights-0", place, config, tmp_path / "runs")], "training", 1)
    assert cells.failures == {}
    done = done_with(tmp_path, ("ablation",), {})
    done.cells.results.update(cells.results)
    assert "have collapsed to" in cells.value("controlled/free weights-0")["collapsed"]
    assert list(done.trained("controlled", ("free weights",))) == []
    (ablation, *_) = make_tables(done)
    row = next(row for row in ablation.rows if row[0] == "free weights")
    assert row[1:] == ("1 of 3 collapsed",)


def test_the_page_of_results_has_the_tables_of_a_reproduction_with_its_seeds_and_its_date(tmp_path):
    cells = {"controlled/LSeg only-%d/made100": [[scored(20)], [scored(22)], [scored(24)]]}
    done = done_with(tmp_path / "rooms", ("ablation",), cells)
    done.cells.results["controlled/oracle-0"] = Result(None, "no labels", 1.0, 100)
    write_results(done, make_tables(done), [])
    write_page(reproductions=(done.out,), out=tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    day = json.loads((done.out / "results.json").read_text())["date"]
    assert f"## `cuao3d reproduce rooms`\n\n{day}, version {__version__}" in page
    assert "Seeds 0, 1, 2 of each student; train 48, val 8, test 24, views 12, steps 1500, ablation 500." in page
    assert "| student | distilled mIoU |\n| --- | ---: |\n| LSeg only | 22.0 ± 5.0 (3) |" in page  # 4.303 * 2 / sqrt(3)
    assert "Failed: `controlled/oracle-0`: no labels" in page
    assert "its numbers mean nothing" not in page
    with pytest.raises(NotFoundError):
        write_page(reproductions=(tmp_path,), out=tmp_path / "results.md")
