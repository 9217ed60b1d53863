"""RADIO in the layouts of its folders: as transformers writes it, and as it is published."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cuao3d.cli import main
from cuao3d.errors import InputError
from cuao3d.store import Store
from cuao3d.teachers.radio import RADIO, SIZES, _read_arguments
from written import write_folder

transformers = pytest.importorskip("transformers")

PUBLISHED = {
    "architectures": ["RADIOModel"],
    "auto_map": {"AutoConfig": "hf_model.RADIOConfig", "AutoModel": "hf_model.RADIOModel"},
    "version": "c-radio_v4-h",
    "patch_size": 16,
    "max_resolution": 2048,
    "preferred_resolution": [512, 512],
    "adaptor_names": [],
    "adaptor_configs": {},
    "vitdet_window_size": None,
    "feature_normalizer_config": None,
    "args": {
        "model": "tiny",
        "model_kwargs": {},
        "cpe_max_size": 64,
        "cls_token_per_teacher": True,
        "register_multiple": 10,
        "dtype": "float32",
        "teachers": [
            {"name": "siglip2-g", "use_summary": True},
            {"name": "dino_v3_7b", "use_summary": True},
            {"name": "sam3", "use_summary": False},
            {"name": "sam3", "use_summary": False},
        ],
    },
}
"""The `config.json` of a RADIO as it is published, but tiny."""


TINY = (16, 2, 2, 32)
"""Channels, blocks, heads and channels of the perceptron of the network of these tests."""

PICTURE = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A folder as transformers writes it, but without layer scales, which the published ones lack."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("radio")
    width, blocks, heads, hidden = TINY
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "mlp_ratio": hidden / width,
    }
    model = transformers.RadioModel(transformers.RadioConfig(**sizes, max_img_size=64))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    edit_tensors(folder, remove="layer_scale")
    return folder


def edit_tensors(folder, *, remove="no such name", add=None):
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if remove not in name}
    save_file({**kept, **(add or {})}, folder / "model.safetensors", {"format": "pt"})


def edit_settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def published(plain, folder, summary):
    """Write a RADIO as it is published: code beside the weights, and which tokens it sums up with, or not."""
    shutil.copytree(plain, folder)
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    (folder / "hf_model.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    edit_tensors(folder, remove="summary_idxs")
    edit_tensors(folder, add={} if summary is None else {"radio_model.summary_idxs": torch.tensor(summary)})
    return folder


@pytest.mark.parametrize("summary", [None, [0, 1], [0, 1, 2]])
@pytest.mark.parametrize("layout", ["published", "transformers", "without a type"])
def test_both_layouts_of_a_radio_open_without_its_code(layout, summary, plain, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    folder = published(plain, tmp_path / "radio", summary)
    if layout != "published":
        shutil.copy(plain / "config.json", folder)
        edit_settings(folder, **{key: PUBLISHED[key] for key in ("auto_map", "architectures")}, args={"model": "none"})
    if layout == "without a type":
        settings = json.loads((folder / "config.json").read_text())
        kept = {key: value for key, value in settings.items() if key not in ("model_type", "args")}
        (folder / "config.json").write_text(json.dumps(kept))
    assert torch.equal(RADIO(folder)(PICTURE)[0], RADIO(plain)(PICTURE)[0])
    assert not (folder / "ran").exists()


def test_a_published_radio_lifts_a_capture(plain, synthetic_scene, tmp_path, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    folder = published(plain, tmp_path / "radio", None)
    capture, store = write_folder(synthetic_scene, tmp_path / "capture"), tmp_path / "store"
    command = ["fuse", str(capture), "--teachers", f"radio={folder}", "--cell", "0.1", "--out", str(store)]
    assert main(command) == 0
    assert Store.open(store).teachers["radio"].num_channels == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "eradio"}, "unknown model 'eradio', expected vit_base_patch16_224 or"),
        ({"model": "vit_huge_patch16_224"}, r"in args: 'teachers'"),
        (None, "describes no RADIO that can be read"),
    ],
)
def test_a_radio_of_another_kind_is_named(arguments, message, plain, tmp_path):
    folder = published(plain, tmp_path / "radio", None)
    edit_settings(folder, args=arguments)
    with pytest.raises(InputError, match=rf"radio/config\.json .*{message}"):
        RADIO(folder)
    edit_settings(folder, architectures=["OtherModel"])
    with pytest.raises(InputError, match="type 'OtherModel'; expected radio"):
        RADIO(folder)


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        ({"register_multiple": 10}, (3, 7)),  # C-RADIOv4, as transformers presumes
        ({"register_multiple": 3}, (3, 3)),
        ({"cpe_num_registers": 4, "register_multiple": 10}, (3, 4)),
        ({"register_multiple": None, "cls_token_per_teacher": False}, (1, 0)),
    ],
)
def test_class_tokens_and_registers_are_counted_as_radios_code_does(arguments, counts, monkeypatch):
    monkeypatch.setitem(SIZES, "tiny", TINY)
    options = _read_arguments({**PUBLISHED["args"], **arguments})
    assert (options["num_cls_tokens"], options["num_registers"]) == counts


def test_a_published_c_radio_v4_is_what_transformers_presumes():
    options = _read_arguments({**PUBLISHED["args"], "model": "vit_huge_patch16_224", "cpe_max_size": 2048})
    assert options == {name: getattr(transformers.RadioConfig(), name) for name in options}


def test_a_radio_that_holds_more_than_is_computed_is_refused(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "radio")
    prefix = "radio_model.adaptors.siglip2-g.head_mlp."
    edit_tensors(folder, add={prefix + "fc1.weight": torch.zeros(3, 3)})
    assert torch.equal(RADIO(folder)(PICTURE)[0], RADIO(plain)(PICTURE)[0])
    edit_tensors(folder, add={"radio_model.feature_normalizer.mean": torch.zeros(16)})
    with pytest.raises(ValueError, match=r"unknown radio_model\.feature_normalizer\.mean"):
        RADIO(folder)
