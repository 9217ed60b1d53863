"""`cuao3d weights` and `fuse` against a hub on loopback, through the real library."""

import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import termios
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from cuao3d.cli import main
from cuao3d.download import CARDS, OLD_WEIGHTS
from cuao3d.store import Store
from hub import COMMITS, serving
from written import write_folder

PLAIN = {
    "README.md": b"# A model\n",
    ".gitattributes": b"*.safetensors filter=lfs\n",
    "config.json": b'{"model_type": "dinov2"}',
    "modeling.py": b"raise RuntimeError\n",
    "vocab.json": b'{"a": 0}',
    "model.safetensors": bytes(range(256)) * 40,
}
"""Files of a repository: of its weights, only how they travel matters."""

DINOV2 = CARDS["dinov2"].repository


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A machine without weights."""
    monkeypatch.setenv("CUAO3D_CACHE", str(tmp_path / "cuao3d"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.fixture
def hub(home, monkeypatch):
    """A hub with DINOv2. The library reads its address when it is imported, so it is set in its constants."""
    with serving({DINOV2: PLAIN}) as hub:
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
        yield hub


def weights(capsys, *arguments):
    """Run `cuao3d weights`; returns exit code, output and the error in one line."""
    code = main(["weights", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.strip().split("\n")[-1]


def fetch(capsys, name="dinov2"):
    """Fetch weights; returns their folder."""
    code, out, error = weights(capsys, "fetch", name)
    assert code == 0, error
    return Path(out.strip().split("\n")[-1].removeprefix(f"{name}: "))


def downloaded(hub):
    """Files whose content was asked for."""
    return {request.split("/")[-1] for request in hub.requests if request.startswith("GET") and "/resolve/" in request}


def record_of(home, name="dinov2"):
    return json.loads((home / "cuao3d" / "weights" / f"{name}.json").read_text())


def forget_listing(home):
    """Leave the cache as versions of the library before 2.4 do, which cannot tell whether a download was stopped."""
    for listing in (home / "hub").glob("models--*/trees"):
        shutil.rmtree(listing)


@pytest.mark.parametrize("listing", [True, False])
def test_weights_are_fetched_listed_and_verified(listing, hub, home, capsys):
    folder = fetch(capsys)
    needed = {"config.json", "vocab.json", "model.safetensors"}
    assert folder.name == COMMITS["main"]
    assert {path.name for path in folder.iterdir()} == downloaded(hub) == needed
    hashes = {file: hashlib.sha256(PLAIN[file]).hexdigest() for file in needed}
    assert record_of(home) == {"repository": DINOV2, "revision": COMMITS["main"], "sha256": hashes}

    hub.requests.clear()
    if not listing:
        forget_listing(home)
    assert f"    here: {folder}\n" in weights(capsys, "list", "dinov2")[1]
    code, out, _ = weights(capsys, "verify")
    lines = {f"dinov2: {file} {sha256} (recorded at download)" for file, sha256 in hashes.items()}
    assert (code, set(out.strip().split("\n"))) == (0, lines)
    assert fetch(capsys) == folder
    assert hub.requests == []


@pytest.mark.parametrize("listing", [True, False])
def test_a_download_that_was_stopped_is_not_here_and_can_be_finished(listing, hub, home, capsys):
    hub.cut.add("model.safetensors")
    code, _, error = weights(capsys, "fetch", "dinov2")
    assert code == 2
    assert f"No repository gave the weights 'dinov2' ({DINOV2}: " in error
    if not listing:
        forget_listing(home)
    assert "    not on this machine" in weights(capsys, "list", "dinov2")[1]
    assert "No published weights are on this machine" in weights(capsys, "verify")[1]
    assert not (home / "cuao3d" / "weights" / "dinov2.json").exists()
    hub.cut.clear()
    assert (fetch(capsys) / "model.safetensors").read_bytes() == PLAIN["model.safetensors"]


@pytest.mark.parametrize("file", ["model.safetensors", "vocab.json"])
def test_a_changed_file_is_named_and_what_the_error_says_mends_it(file, hub, capsys):
    path = fetch(capsys) / file
    path.write_bytes(PLAIN[file].replace(b"a", b"b"))
    for action in ("verify", "fetch"):
        code, _, error = weights(capsys, action, "dinov2")
        assert code == 2
        assert f"{path} is not the file that was recorded at download" in error
    cure = re.search(r"Delete (\S+) and run: cuao3d weights fetch dinov2", error)
    Path(cure[1]).unlink()
    fetch(capsys)
    assert path.read_bytes() == PLAIN[file]
    assert weights(capsys, "verify")[0] == 0


def test_a_download_that_is_not_what_the_hub_names_is_refused(hub, capsys, monkeypatch):
    monkeypatch.setattr("hub.name_of_blob", lambda file, content: "0" * 64)
    code, _, error = weights(capsys, "fetch", "dinov2")
    assert code == 2
    assert "its SHA-256 is" in error
    assert "0" * 64 in error


def test_a_lost_file_is_named_until_it_is_fetched_again(hub, home, capsys):
    path = fetch(capsys) / "vocab.json"
    path.unlink()
    forget_listing(home)
    assert "incomplete: vocab.json missing" in weights(capsys, "list", "dinov2")[1]
    for action in (("verify",), ("verify", "dinov2")):
        code, _, error = weights(capsys, *action)
        assert code == 2
        assert "'dinov2' lack vocab.json. Get what is missing: cuao3d weights fetch dinov2" in error
    fetch(capsys)
    assert path.is_file()


def test_weights_that_were_deleted_are_not_missed_and_those_put_in_their_place_are_not_compared(hub, home, capsys):
    folder = fetch(capsys)
    own = home / "cuao3d" / "weights" / "dinov2"
    own.mkdir()
    (own / "model.safetensors").write_bytes(b"weights of my own")
    assert weights(capsys, "verify")[1].count("(not recorded)") == 1
    shutil.rmtree(own)
    shutil.rmtree(folder)
    assert "No published weights are on this machine" in weights(capsys, "verify")[1]


def test_what_is_fetched_again_is_of_the_commit_that_was_recorded(hub, home, capsys, monkeypatch):
    folder = fetch(capsys)
    monkeypatch.setitem(COMMITS, "main", "d" * 40)
    shutil.rmtree(home / "hub")
    assert fetch(capsys) == folder
    (home / "cuao3d" / "weights" / "dinov2.json").unlink()
    shutil.rmtree(home / "hub")
    assert fetch(capsys).name == "d" * 40


def test_a_card_may_name_a_revision(hub, capsys, monkeypatch):
    monkeypatch.setitem(CARDS, "dinov2", replace(CARDS["dinov2"], revision="v2"))
    assert fetch(capsys).name == COMMITS["v2"]


def test_a_published_sha256_goes_before_the_recorded_one(hub, capsys, monkeypatch):
    published = {"model.safetensors": hashlib.sha256(PLAIN["model.safetensors"]).hexdigest()}
    monkeypatch.setitem(CARDS, "dinov2", replace(CARDS["dinov2"], sha256=published))
    fetch(capsys)
    lines = weights(capsys, "verify")[1].strip().split("\n")
    assert [line.endswith("(published)") for line in lines] == [" model.safetensors " in line for line in lines]
    monkeypatch.setitem(CARDS, "dinov2", replace(CARDS["dinov2"], sha256={"model.safetensors": "0" * 64}))
    code, _, error = weights(capsys, "verify", "dinov2")
    assert code == 2
    assert "model.safetensors is not the file that was published" in error


def test_a_mirror_serves_where_the_first_repository_is_gone(hub, home, capsys):
    first, mirror = CARDS["stable-diffusion-2.1"].repository, CARDS["stable-diffusion-2.1"].mirrors[0]
    parts = {f"{part}/diffusion_pytorch_model.safetensors": b"tensors" for part in ("unet", "vae")}
    parts |= {"text_encoder/model.safetensors": b"more", "tokenizer/vocab.json": b"{}", "unet/config.json": b"{}"}
    hub.repositories[mirror] = {**parts, "unet/diffusion_pytorch_model.fp16.safetensors": b"half", "README.md": b""}
    folder = fetch(capsys, "stable-diffusion-2.1")
    assert any(first in request for request in hub.requests)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == set(parts)
    assert record_of(home, "stable-diffusion-2.1")["repository"] == mirror
    assert weights(capsys, "verify", "stable-diffusion-2.1")[1].count("recorded at download") == len(parts)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    (home / "cuao3d" / "weights" / "stable-diffusion-2.1.json").unlink()
    forget_listing(home)
    assert "    not on this machine" in weights(capsys, "list", "stable-diffusion-2.1")[1]


def test_where_no_repository_gives_weights_each_says_why(hub, capsys):
    code, _, error = weights(capsys, "fetch", "stable-diffusion")
    assert code == 2
    for repository in (CARDS["stable-diffusion"].repository, *CARDS["stable-diffusion"].mirrors):
        assert f"{repository}: 404" in error
    hub.repositories[CARDS["vit"].repository] = {"config.json": b"{}", "flax_model.msgpack": b"flax"}
    assert "vit-large-patch16-224: it holds no such weights" in weights(capsys, "fetch", "vit")[2]


def test_offline_says_so_and_what_is_here_needs_no_network(hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, _, error = weights(capsys, "fetch", "dinov2")
    assert (code, hub.requests) == (2, [])
    assert "'dinov2' are not on this machine, and HF_HUB_OFFLINE forbids downloading" in error
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    folder = fetch(capsys)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch(capsys) == folder


def test_weights_that_another_program_downloaded_are_found_and_recorded_when_fetched(hub, home, capsys):
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(DINOV2))
    assert (folder / "README.md").is_file()
    assert "(not recorded)" in weights(capsys, "verify")[1]
    hub.requests.clear()
    assert fetch(capsys) == folder
    assert hub.requests == []
    out = weights(capsys, "verify")[1]
    assert out.count("(recorded at download)") == 3
    assert "README.md" not in out


def test_a_vit_comes_without_safetensors(hub, capsys):
    hub.repositories[CARDS["vit"].repository] = {"config.json": b"{}", OLD_WEIGHTS: b"tensors", "tf_model.h5": b"tf"}
    assert {path.name for path in fetch(capsys, "vit").iterdir()} == {"config.json", OLD_WEIGHTS}


def run_in_terminal(command, environment):
    """Run a program; returns exit code, output, and what it wrote to the terminal that is its standard error."""
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (25, 100))
    with tempfile.TemporaryFile() as out:
        with subprocess.Popen(command, env=environment, stdout=out, stderr=end) as program:
            os.close(end)
            shown = b""
            with suppress(OSError):  # a terminal whose other end is closed
                while read := os.read(terminal, 4096):
                    shown += read
        os.close(terminal)
        out.seek(0)
        return program.returncode, out.read().decode(), shown.decode()


@pytest.mark.slow
def test_a_teacher_is_fetched_by_a_program_of_its_own_and_lifts_a_capture(home, synthetic_scene, tmp_path):
    """Nothing of the library is replaced while it downloads, and it writes to a terminal."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=42)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "model")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    script = (
        "import sys; from cuao3d.cli import main; sys.exit(max(main(['weights', a, 'dinov2']) for a in sys.argv[1:]))"
    )
    unset = {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_HUB_DISABLE_PROGRESS_BARS"}
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    readme = {"README.md": b"# DINOv2\n", ".gitattributes": b"*.safetensors filter=lfs\n"}
    with serving({DINOV2: files | readme}) as hub:
        code, out, shown = run_in_terminal(
            [sys.executable, "-c", script, "fetch", "list", "verify"],
            {**inherited, "HF_HOME": str(home), "HF_ENDPOINT": hub.address},
        )
    assert code == 0, shown
    assert "Fetching 2 files: 100%" in shown
    assert out.count(f"/hub/models--facebook--dinov2-large/snapshots/{COMMITS['main']}\n") == 2
    sha256 = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert f"dinov2: model.safetensors {sha256} (recorded at download)\n" in out

    capture, store = write_folder(synthetic_scene, tmp_path / "capture"), tmp_path / "store"
    assert main(["fuse", str(capture), "--teachers", "dinov2", "--cell", "0.1", "--out", str(store)]) == 0
    card = Store.open(store).teachers["dinov2"]
    assert (card.num_channels, card.weights_sha256, card.licence) == (16, sha256, "Apache-2.0")


def test_names_that_do_not_exist_say_which_do(home, capsys):
    for arguments in (["fetch", "dinno"], ["list", "dinno"], ["verify", "dinno"], ["fetch"]):
        code, _, error = weights(capsys, *arguments)
        assert code == 2
        assert "choose from lseg, dinov2, " in error
        assert "stable-diffusion" in error


def test_a_damaged_record_is_named(hub, home, capsys):
    fetch(capsys)
    for damage, what in (
        ("{", "is not valid JSON"),
        ("[]", "is []; expected an object"),
        ('{"files": {}}', "has no setting"),
    ):
        path = home / "cuao3d" / "weights" / "dinov2.json"
        path.write_text(damage)
        code, _, error = weights(capsys, "verify", "dinov2")
        assert code == 2
        assert f"{path} {what}" in error
        path.unlink()
