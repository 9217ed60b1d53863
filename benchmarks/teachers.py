"""Images a second and memory of every teacher's architecture at its real size, with random weights.

Each is written to disk in the format that its weights are published in, and loaded as those are.
"""

import gzip
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from torch import nn

from common import peak_in_own_process, peak_of, provenance, write_section
from cuao3d.products import MM, Way, chosen, using
from cuao3d.teachers import load_teacher
from cuao3d.teachers.lseg import LSeg
from cuao3d.teachers.network import Precision
from cuao3d.teachers.views import describe_together
from cuao3d.text.clip_tokens import MERGES_FILE, pieces

IMAGE = (3, 480, 640)


PHOTOGRAPHS = ("photo", "efficientnet", "ade20k")
"""Teachers that have their own, small weights."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    teacher: str
    """Name of the teacher, or of the weights whose sizes it has."""
    device: str
    precision: str
    batch: int
    """Images at a time."""
    parameters: int
    seconds_per_image: float
    """Median over the batches, of reading ahead, preparing, describing."""
    outside: float
    """Share of the time that is not spent in the network."""
    seconds_by_mm: float
    """The same with `torch.mm`; the same number where that is what is used."""
    peak_mb: float
    """Memory that loading and describing one batch adds, in a process of its own; of a GPU: the GPU's."""


def main(
    teachers: tuple[str, ...] = (
        *PHOTOGRAPHS,
        "dinov2",
        "dinov3",
        "clip",
        "siglip2",
        "radio",
        "vit",
        "lseg",
        "stable-diffusion",
    ),
    device: str = "cpu",
    precision: Precision = "fp32",
    batch: int = 1,
    repeats: int = 3,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    readme: Path | None = None,
    memory_of: str | None = None,
) -> None:
    """Measure teachers on images of 640 x 480.

    Args:
        teachers: Names of teachers.
        device: Where they run.
        precision: What they compute in.
        batch: Images at a time.
        repeats: Batches that are timed, after one that warms up.
        json_file: Where to write the rows.
        readme: Page to write the table into, with machine and date.
        memory_of: Only describe one batch with this teacher, written as on the command line, and print the peak memory.
    """
    if memory_of:
        print(_peak(memory_of, device, precision, batch))
        return
    rows = []
    for name in teachers:
        with tempfile.TemporaryDirectory() as folder:
            spec = f"{name}={CHECKPOINTS[name](Path(folder))}" if name in CHECKPOINTS else name
            rows.append(_measure(name, spec, device, precision, batch, repeats))
        row = rows[-1]
        print(
            f"{name:<18} {row.parameters / 1e6:6.0f} M  {row.seconds_per_image:8.3f} s an image  "
            f"{row.outside:6.1%} outside  {row.peak_mb:7.0f} MB"
        )
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    for own, title in ((True, "Teachers for photographs"), (False, "Teachers")):
        of_section = [row for row in rows if (row.teacher in PHOTOGRAPHS) == own]
        if readme and of_section:
            write_section(readme, f"{title.lower()} on {device}", section(of_section, title, repeats))


def section(rows: list[Row], title: str, repeats: int) -> list[str]:
    """The rows as a section."""
    first = rows[0]
    weights = (
        "their own weights."
        if first.teacher in PHOTOGRAPHS
        else "random weights of the real sizes, written and loaded as the published ones."
    )
    names = " ".join(row.teacher for row in rows)
    options = f"--device {first.device} --precision {first.precision} --batch {first.batch} --repeats {repeats}"
    lines = [
        f"## {title} on {first.device}",
        "",
        *provenance(f"python benchmarks/teachers.py --teachers {names} {options} --readme benchmarks/README.md"),
        f"Images of {IMAGE[2]} x {IMAGE[1]}, {first.batch} at a time, {first.precision}; {weights}",
        "*Outside* is the share of the time not spent in the network. *Times `torch.mm`* compares with",
        "products by `torch.mm`, in turns.",
        "",
        "| teacher | parameters, M | seconds an image | times `torch.mm` | outside | memory, MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row.teacher} | {row.parameters / 1e6:,.0f} | {row.seconds_per_image:.3f} "
            f"| {row.seconds_by_mm / row.seconds_per_image:.2f} | {row.outside:.1%} "
            f"| {row.peak_mb:,.0f} |"
        )
    return lines


def _measure(name: str, spec: str, device: str, precision: Precision, batch: int, repeats: int) -> Row:
    teacher = load_teacher(spec, device=device, precision=precision)
    networks = [value for value in vars(teacher).values() if isinstance(value, nn.Module)]
    inside = _Stopwatch(networks, device)
    images = [torch.rand(IMAGE, generator=torch.Generator().manual_seed(index)) for index in range(batch)]
    totals: dict[Way, list[float]] = {way: [] for way in (MM, chosen())}
    shares = []
    for way in [*totals] * (repeats + 1):
        inside.seconds = 0.0
        start = time.perf_counter()
        with using(way):
            for _ in describe_together([teacher], [lambda image=image: image for image in images], batch_size=batch):
                _wait(device)
        total = time.perf_counter() - start
        totals[way].append(total / batch)
        if way == chosen():
            shares.append(1 - inside.seconds / total)
    arguments = ["--memory-of", spec, "--device", device, "--precision", precision]
    return Row(
        teacher=name,
        device=device,
        precision=precision,
        batch=batch,
        parameters=sum(parameter.numel() for network in networks for parameter in network.parameters()),
        seconds_per_image=median(totals[chosen()][1:]),  # the first warms up
        outside=median(shares[1:]),
        seconds_by_mm=median(totals[MM][1:]),
        peak_mb=peak_in_own_process([*arguments, "--batch", str(batch)]),
    )


def _peak(spec: str, device: str, precision: Precision, batch: int) -> float:
    def run() -> None:
        teacher = load_teacher(spec, device=device, precision=precision)
        for _ in describe_together([teacher], [lambda: torch.rand(IMAGE)] * batch, batch_size=batch):
            pass

    peak = peak_of(run)
    return torch.cuda.max_memory_allocated() / 2**20 if device != "cpu" else peak


class _Stopwatch:
    """Sums the time that is spent in networks; in the outermost of their parts that are called."""

    def __init__(self, networks: list[nn.Module], device: str) -> None:
        self.seconds, self.depth, self.start, self.device = 0.0, 0, 0.0, device
        for part in {part for network in networks for part in network.modules()}:
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave, always_call=True)

    def _enter(self, *_: Any) -> None:
        if self.depth == 0:
            _wait(self.device)
            self.start = time.perf_counter()
        self.depth += 1

    def _leave(self, *_: Any) -> None:
        self.depth -= 1
        if self.depth == 0:
            _wait(self.device)
            self.seconds += time.perf_counter() - self.start


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def _transformer(make: Callable[[Any], nn.Module]) -> Callable[[Path], Path]:
    """Return a function that writes a model of the transformers library."""

    def write(folder: Path) -> Path:
        import transformers

        transformers.utils.logging.disable_progress_bar()
        make(transformers).save_pretrained(folder)
        statistics = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(statistics))
        return folder

    return write


def _lseg(folder: Path) -> Path:
    """Write LSeg's image side as ViT-L/16."""
    network = LSeg(
        width=1024,
        num_heads=16,
        depth=24,
        num_positions=577,
        hooks=(5, 11, 17, 23),
        branches=(256, 512, 1024, 1024),
        fused=256,
        num_channels=512,
    )
    path = folder / "demo_e200.ckpt"
    torch.save({"state_dict": {f"net.{name}": tensor for name, tensor in network.state_dict().items()}}, path)
    return path


def _stable_diffusion(folder: Path) -> Path:
    """Write the networks of Stable Diffusion 1.5, with CLIP's vocabulary."""
    import diffusers
    import transformers

    transformers.utils.logging.disable_progress_bar()
    widths = (320, 640, 1280, 1280)
    unet = diffusers.UNet2DConditionModel(block_out_channels=widths, cross_attention_dim=768, attention_head_dim=8)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    )
    words = transformers.CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
    scheduler = diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    parts = {"unet": unet, "vae": vae, "text_encoder": transformers.CLIPTextModel(words), "scheduler": scheduler}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "tokenizer").mkdir()
    vocabulary = {piece: number for number, piece in enumerate(pieces())}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "tokenizer" / "merges.txt").write_bytes(b"#version: 0.2\n" + gzip.decompress(MERGES_FILE.read_bytes()))
    settings = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}

CHECKPOINTS: dict[str, Callable[[Path], Path]] = {
    "dinov2": _transformer(lambda hf: hf.Dinov2Model(hf.Dinov2Config(**_LARGE, image_size=518, patch_size=14))),
    "dinov3": _transformer(
        lambda hf: hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**_LARGE, intermediate_size=4096, num_register_tokens=4))
    ),
    "clip": _transformer(
        lambda hf: hf.CLIPModel(hf.CLIPConfig(vision_config={**_BASE, "patch_size": 16}, projection_dim=512))
    ),
    "siglip2": _transformer(
        lambda hf: hf.SiglipModel(hf.SiglipConfig(vision_config={**_BASE, "image_size": 512, "patch_size": 16}))
    ),
    "radio": _transformer(
        lambda hf: hf.RadioModel(hf.RadioConfig(hidden_size=1280, num_hidden_layers=32, num_attention_heads=16))
    ),
    "vit": _transformer(lambda hf: hf.ViTModel(hf.ViTConfig(**_LARGE, intermediate_size=4096))),
    "lseg": _lseg,
    "stable-diffusion": _stable_diffusion,
}
"""Writes weights of the real size into a folder, and returns where they lie, by teacher."""


if __name__ == "__main__":
    tyro.cli(main)
