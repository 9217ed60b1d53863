"""JSON from outside and settings fit their schemas, or an error names the key and the option."""

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, NotRequired, TypedDict, get_type_hints

import pytest

from cuao3d import recipes
from cuao3d.augment import Augmentation
from cuao3d.cli import COMMANDS
from cuao3d.demo import DemoConfig
from cuao3d.distill import DistillConfig
from cuao3d.errors import InputError
from cuao3d.schema import Count, Fraction, Range, check_settings, fit, parse
from cuao3d.supervise import SuperviseConfig
from test_cli import says


@dataclass(frozen=True)
class Lens:
    focal: tuple[float, float]
    size: Count = 1


class Header(TypedDict):
    kind: Literal["a", "b", True]
    lens: Lens
    seen: NotRequired[dict[str, list[Annotated[float, Range(0, 1)]]]]
    note: NotRequired[str | int | None]


GOOD = {"kind": "a", "lens": {"focal": [1, 2.5]}, "seen": {"x": [0, 1]}, "note": None, "unknown": 3}


def test_what_fits_is_read_as_the_schema_wants_it():
    read = fit(GOOD, Header, "file")
    assert read == {"kind": "a", "lens": Lens((1.0, 2.5)), "seen": {"x": [0.0, 1.0]}, "note": None}
    assert type(read["lens"].focal[0]) is float
    assert parse(b'{"kind": true, "lens": {"focal": [1, 2], "size": 9}}', Header, "file")["lens"].size == 9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "c"}, r"file: kind is 'c'; expected 'a' or 'b' or True"),
        ({"kind": 1}, "file: kind is 1; expected"),
        ({"lens": None}, "file: lens is None; expected an object"),
        ({"lens": {}}, "file: lens lacks focal"),
        ({"lens": {"focal": [1, 2], "sise": 3}}, "file: lens has no setting 'sise'; choose from focal, size"),
        ({"lens": {"focal": [1]}}, r"file: lens.focal is \[1\]; expected a list of 2"),
        ({"lens": {"focal": [1, "2"]}}, r"file: lens.focal\[1\] is '2'; expected a number"),
        ({"lens": {"focal": [1, True]}}, r"focal\[1\] is True; expected a number"),
        ({"lens": {"focal": [1, math.nan]}}, r"focal\[1\] is nan; expected a number"),
        ({"lens": {"focal": [1, -math.inf]}}, r"focal\[1\] is -inf; expected a number"),
        ({"lens": {"focal": [1, 10**400]}}, r"focal\[1\] is a whole number of more than 64 bits; expected a number"),
        ({"lens": {"focal": [1, 2], "size": 0}}, r"size is 0; expected a number from 1 to 1e\+09"),
        ({"lens": {"focal": [1, 2], "size": 1.0}}, r"size is 1.0; expected a whole number"),
        ({"lens": {"focal": [1, 2], "size": 10**5000}}, r"size is a whole number of more than 64 bits"),
        ({"seen": {"x": [1.5]}}, r"file: seen.x\[0\] is 1.5; expected a number from 0 to 1"),
        ({"seen": {"x": {}}}, r"file: seen.x is {}; expected a list"),
        ({"seen": []}, r"file: seen is \[\]; expected an object"),
        ({"note": []}, r"file: note is \[\]; expected text or a whole number or null"),
    ],
)
def test_what_does_not_fit_is_named_with_its_key(change, message):
    with pytest.raises(InputError, match=message) as told:
        fit(GOOD | change, Header, "file", "delete it")
    assert str(told.value).endswith("; delete it.")
    with pytest.raises(InputError, match="file lacks kind, lens"):
        fit({}, Header, "file")


@pytest.mark.parametrize("text", ["", "{", "[" * 200_000, '{"a":' * 200_000, "9" * 5000, b"\xff", "\ud800"])
def test_what_is_no_json_is_told_in_one_line(text):
    with pytest.raises(InputError, match=r"^file is not valid JSON .*; delete it\.$"):
        parse(text, dict[str, int], "file", "delete it")


@dataclass(frozen=True)
class Inner:
    part: Fraction | None = None


@dataclass(frozen=True)
class Settings:
    count: Count = 1
    parts: tuple[Fraction, ...] = ()
    inner: Inner = field(default_factory=Inner)
    free: int = -1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(count=0), r"--config.count is 0; expected a number from 1 to 1e\+09"),
        (Settings(parts=(0.5, 1.0)), "--config.parts is 1; expected a number between 0 and 1, both excluded"),
        (Settings(inner=Inner(part=math.nan)), "--config.inner.part is nan"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    check_settings(Settings())
    with pytest.raises(InputError, match=message):
        check_settings(settings)


@pytest.mark.parametrize("recipe", [*recipes.RECIPES.values(), *recipes.SUPERVISED_RECIPES.values()])
def test_recipes_are_in_range_and_are_checked_like_what_is_typed(recipe):
    recipe().validate()
    with pytest.raises(InputError, match=r"--config.seed is -1"):
        recipe(seed=-1).validate()
    with pytest.raises(InputError, match=r"--config.augmentation.scale is 2; .*0.99"):
        replace(recipe(), augmentation=Augmentation(scale=2.0)).validate()


@pytest.mark.parametrize("config", [DistillConfig, SuperviseConfig, DemoConfig, Augmentation])
def test_every_number_of_a_configuration_has_a_range(config):
    for name, hint in get_type_hints(config, include_extras=True).items():
        if any(is_number(one) for one in _parts(hint)):
            assert any(isinstance(one, Range) for one in _parts(hint)), name


def _parts(hint):
    yield hint
    for part in (*getattr(hint, "__metadata__", ()), *getattr(hint, "__args__", ())):
        yield from _parts(part)


def is_number(hint):
    return hint in (int, float)


NUMBERS = {
    "fuse": ("--cell", "--batch-size", "--workers", "--tolerance", "--every"),
    "check": ("--cell", "--tolerance", "--every"),
    "distill": ("--voxel-size", "--steps", "--seed", "--cache-gb"),
    "supervise": ("--voxel-size", "--steps", "--seed"),
    "probe": ("--samples", "--seed"),
    "reproduce": ("--seeds", "--steps", "--workers"),
    "evaluate": ("--passes", "--workers"),
    "query": ("--abstain", "--workers"),
    "view": ("--port",),
    "search": ("--top",),
    "demo": ("--seed",),
    "import": ("--cell",),
}


def test_these_are_all_options_with_numbers():
    for command, function in COMMANDS.items():
        hints = get_type_hints(function, include_extras=True)
        found = {f"--{name.replace('_', '-')}" for name, hint in hints.items() if {int, float} & {*_parts(hint)}}
        assert found - {"--return"} == {*NUMBERS.get(command, ())}


@pytest.mark.parametrize(("command", "option"), [(command, one) for command in NUMBERS for one in NUMBERS[command]])
def test_numbers_out_of_range_are_refused_by_name(command, option, tmp_path, capsys):
    is_float = option in ("--cell", "--tolerance", "--voxel-size", "--abstain", "--cache-gb")
    for value in ("-5", "-1", "99999999999999", *(("nan", "inf", "-inf", "0", "-0.05", "1e300") if is_float else ())):
        typed = {"demo": [], "reproduce": ["rooms"], "query": [tmp_path / "nowhere", "a chair"]}
        typed["search"] = typed["query"]
        places = typed.get(command, [tmp_path / "nowhere"])
        out = [] if command in ("check", "probe", "evaluate", "view") else ["--out", tmp_path / "out"]
        says(capsys, [command, *places, *out, f"{option}={value}"], f"{option} is {float(value):g}; expected a number ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["fuse", "distill", "evaluate", "query"])
def test_a_device_that_is_not_there_is_refused(command, tmp_path, capsys):
    words = ["word"] if command == "query" else []
    out = [] if command == "evaluate" else ["--out", tmp_path / "out.json"]
    says(
        capsys,
        [command, tmp_path, *words, *out, "--device", "banana"],
        "--device banana is not on this machine; choose",
    )


def test_settings_are_refused_before_the_store_is_opened(tmp_path, capsys):
    command = ["distill", tmp_path / "nowhere", "--out", tmp_path / "run"]
    says(capsys, [*command, "--config.augmentation.rotation=nan"], "--config.augmentation.rotation is nan")
    says(capsys, [*command, "--config.fixed-weights", "1", "-1"], "--config.fixed-weights is -1")
    says(capsys, ["demo", "--out", tmp_path / "run", "--config.num-views", "0"], "--config.num-views is 0")
