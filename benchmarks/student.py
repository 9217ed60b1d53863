"""Time and memory of the student: the naive twin, the same network of ocnn, and ours, side by side in one run."""

import cuao3d  # noqa: F401 - before PyTorch, which looks at what it asks for when it is imported

# isort: split
import json
import textwrap
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro
from jaxtyping import Float, Int
from torch import Tensor

from common import (
    HEADS,
    keep_memory,
    peak,
    peak_of,
    product_speed,
    provenance,
    room,
    take_turns,
    write_section,
)
from cuao3d.products import MM, chosen, using
from cuao3d.sparse import BACKENDS
from cuao3d.student import ConvNorm, Student
from rival import NOT_INSTALLED, SETTINGS, OctreeStudent, Setting, fastest_setting, largest_difference, load_ocnn

What = Literal["forward", "train_body"]
Variant = Literal["naive", "naive_product", "ocnn", "ocnn_bf16", "fp32", "bf16"]
WHATS: tuple[What, ...] = ("forward", "train_body")
VARIANTS: tuple[Variant, ...] = ("naive", "naive_product", "ocnn", "ocnn_bf16", "fp32", "bf16")

RIVALS: tuple[tuple[Variant, ...], ...] = (("naive",), ("naive_product",), ("ocnn", "ocnn_bf16"))
"""What ours are compared with: a row in bfloat16 with the fastest of a group, one in float32 with its first."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    voxels: int
    what: What
    variant: Variant
    seconds: float
    """Median of the repeats; sorting voxels and building kernel maps included."""
    peak_mb: float
    """Memory on top of the student and its input, measured in a process of its own."""
    flops: int
    """Multiplications and additions that occupied neighbours need; a training step counts them three times."""
    setting: str = ""
    """How ocnn computed its convolutions: the fastest of its settings for this work."""


def main(
    voxels: str = "20000,60000,150000",
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    architecture: str = "MinkUNet18A",
    variants: str = ",".join(VARIANTS),
    work: str = ",".join(WHATS),
    repeats: int = 5,
    readme: Path | None = None,
    title: str = "The student",
    memory_of: str | None = None,
    device: str = "cpu",
) -> None:
    """Measure forward with all heads, and a training step of the body.

    Args:
        voxels: Sizes of the scenes, with commas.
        json_file: Where to write the rows.
        architecture: Name of the student's network.
        variants: Which to compare, with commas; besides the usual ones a backend, such as triton or spconv_bf16.
        work: What to time, with commas.
        repeats: How often each is timed; the variants take turns.
        readme: Page to write the table into, with machine and date.
        title: Of the section there.
        memory_of: Only run this once and print its peak memory, megabytes; "what:variant:index of ocnn's setting".
        device: Where it runs.
    """
    sizes, compared = [int(size) for size in voxels.split(",")], cast(list[Variant], variants.split(","))
    if memory_of:
        what, variant, setting = memory_of.split(":")
        network = make_network(architecture, cast(What, what), cast(Variant, variant), device, SETTINGS[int(setting)])
        print(peak_of(work_of(network, *room(sizes[0]), cast(What, what), cast(Variant, variant), device)))
        return
    keep_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    with using(MM):
        ceilings = {MM: product_speed(torch.float32, device)}
    ceilings |= {"fp32": product_speed(torch.float32, device), "bf16": product_speed(torch.bfloat16, device)}
    print(", ".join(f"large {name} products: {speed / 1e9:.0f} GFLOP/s" for name, speed in ceilings.items()))
    about_ocnn = ""
    if any(variant.startswith("ocnn") for variant in compared):
        about_ocnn = compare_with_ocnn(sizes, architecture)
        print(about_ocnn)
        compared = [variant for variant in compared if not variant.startswith("ocnn") or can_run(variant)]
    if chosen() == MM and "naive" in compared:
        compared = [variant for variant in compared if variant != "naive_product"]  # it would be the same twice
    rows: list[Row] = []
    for size in sizes:
        for what in cast(list[What], work.split(",")):
            rows += measure(size, what, compared, architecture, repeats, device)
            print("\n".join(table(rows[-len(compared) :], ceilings)))
    if json_file:
        json_file.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    if readme:
        options = [f"--architecture {architecture}"] * (architecture != "MinkUNet18A")
        options += [f"--variants {variants}"] * (variants != ",".join(VARIANTS))
        options += [f"--work {work}"] * (work != ",".join(WHATS)) + [f"--title '{title}'"] * (title != "The student")
        command = " ".join([f"python benchmarks/student.py --voxels {voxels} --repeats {repeats}", *options])
        lines = [f"## {title}", "", *provenance(f"{command} --readme benchmarks/README.md")]
        lines += explanation(rows, ceilings, architecture, repeats)
        write_section(readme, title, [*lines, *textwrap.wrap(about_ocnn, 110), "", *table(rows, ceilings)])


def compare_with_ocnn(sizes: list[int], architecture: str) -> str:
    """Check that ocnn computes the same as ours, and say so and what is compared, or that it is not installed."""
    ocnn = load_ocnn()
    if ocnn is None:
        return NOT_INSTALLED
    emulated = "" if can_run("ocnn_bf16") else " This processor emulates bfloat16, and `ocnn_bf16` is left out."
    difference = max(largest_difference(ocnn, room(size)[0], architecture) for size in sizes)
    return (
        f"`ocnn` is the same network out of the modules of ocnn {ocnn.__version__}, but for the stem, for which it has "
        "only kernels of 3x3x3; building its octree included, at the fastest of its settings. Before, the features "
        f"and, in float64, the gradients of all layers' weights were equal to ours up to {difference:.0e} of the "
        f"largest (with the outer weights of our stem zero, and batch norm as in evaluation).{emulated}"
    )


def can_run(variant: Variant) -> bool:
    """Whether ocnn is installed and, for bfloat16, the processor has instructions for it: ocnn would wait forever."""
    return load_ocnn() is not None and (variant == "ocnn" or torch.cpu._is_avx512_bf16_supported())


def explanation(rows: list[Row], ceilings: dict[str, float], architecture: str, repeats: int) -> list[str]:
    """Say what the table compares."""
    return [
        f"{architecture} with heads of {', '.join(map(str, HEADS.values()))} channels; medians of {repeats}, variants",
        "taking turns in a process that keeps its memory; sorting voxels and building kernel maps included. `naive`",
        "gathers, multiplies and adds for each kernel position, with `torch.mm`; `naive_product`, where that is",
        "another, with the product that our layers use. A machine without bfloat16 arithmetic computes `bf16` in",
        f"float32. Large float32 products run at {ceilings['fp32'] / 1e9:.0f} GFLOP/s here, those of `torch.mm` at "
        f"{ceilings[MM] / 1e9:.0f}, bfloat16 ones at {ceilings['bf16'] / 1e9:.0f};",
        "the share of large products is of those of the same type. The columns *times* say how many times as fast a",
        "row is as another of the same work, one in bfloat16 as the faster of ocnn's two.",
    ]


def table(rows: list[Row], ceilings: dict[str, float]) -> list[str]:
    """The rows, with ratios to the rivals of the same work in the same run."""
    rivals = [group for group in RIVALS if any(row.variant in group for row in rows)]
    names = "".join(f" times {group[0]} |" for group in rivals)
    lines = [
        f"| voxels | what | variant | seconds |{names} µs a voxel | extra MB | GFLOP/s | of large products | setting |",
        f"|---|---|---|---|{'---|' * len(rivals)}---|---|---|---|---|",
    ]
    for row in rows:
        seconds = {r.variant: r.seconds for r in rows if (r.voxels, r.what) == (row.voxels, row.what)}
        ratios = ""
        for group in rivals:
            taken = [seconds[variant] for variant in (group if is_half(row) else group[:1]) if variant in seconds]
            ratios += f" {min(taken) / row.seconds:.2f} |" if taken else " |"
        speed = row.flops / row.seconds
        lines.append(
            f"| {row.voxels:,} | {row.what} | {row.variant} | {row.seconds:.3f} |{ratios} "
            f"{1e6 * row.seconds / row.voxels:.0f} | {row.peak_mb:,.0f} | {speed / 1e9:.0f} "
            f"| {speed / ceiling_of(row, ceilings):.0%} | {row.setting} |"
        )
    return lines


def is_half(row: Row) -> bool:
    """Whether a row multiplies in bfloat16."""
    return row.variant.endswith("bf16")


def ceiling_of(row: Row, ceilings: dict[str, float]) -> float:
    """Speed of large products as a row computes them; in float32 where bfloat16 is emulated."""
    return max(ceilings.values()) if is_half(row) else ceilings["fp32"]


def measure(
    num_voxels: int, what: What, variants: list[Variant], architecture: str, repeats: int, device: str
) -> list[Row]:
    """Time the variants, taking turns."""
    coords, feats = room(num_voxels)
    networks = {variant: make_network(architecture, what, variant, device) for variant in variants}
    runs = {variant: work_of(network, coords, feats, what, variant, device) for variant, network in networks.items()}
    settings = {
        variant: fastest_setting(network.use, runs[variant])
        for variant, network in networks.items()
        if isinstance(network, OctreeStudent)
    }
    for variant, setting in settings.items():
        networks[variant].use(setting)
    seconds = take_turns(runs, repeats)
    flops = count_flops(coords, feats, architecture, what)
    command = ["--voxels", str(num_voxels), "--architecture", architecture, "--device", device, "--memory-of"]
    rows = []
    for variant in variants:
        setting = settings.get(variant, SETTINGS[0])
        megabytes = peak(runs[variant], device, [*command, f"{what}:{variant}:{SETTINGS.index(setting)}"])
        name = str(setting) if variant in settings else ""
        rows.append(Row(num_voxels, what, variant, seconds[variant], megabytes, flops, name))
    return rows


def make_network(
    architecture: str, what: What, variant: Variant, device: str, setting: Setting = SETTINGS[0]
) -> Student | OctreeStudent:
    """A student, or the same network of ocnn, ready for some work."""
    torch.manual_seed(0)
    backend = "naive" if variant == "naive_product" else variant.removesuffix("_bf16")
    network: Any = Student(HEADS, architecture).use_backend(backend if backend in BACKENDS else "runs")
    if variant.startswith("ocnn"):
        network = OctreeStudent(load_ocnn(), network).use(setting)
    return network.train(what == "train_body").to(device)


def work_of(
    network: Any, coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"], what: What, variant: Variant, device: str
) -> Callable[[], Any]:
    """What to do with a network."""
    coords, feats = coords.to(device), feats.to(device)

    def precision() -> AbstractContextManager[Any]:
        return torch.autocast(device, torch.bfloat16) if variant.endswith("bf16") else nullcontext()

    def product() -> AbstractContextManager[Any]:
        return using(MM if variant in ("naive", "ocnn", "ocnn_bf16") else chosen())

    def forward() -> None:
        with torch.no_grad(), precision(), product():
            network(coords, feats)

    def train_body() -> None:
        network.zero_grad()
        with product():
            with precision():
                loss = network.hidden(coords, feats).float().square().mean()
            loss.backward()

    return forward if what == "forward" else train_body


def count_flops(coords: Int[Tensor, "V 4"], feats: Float[Tensor, "V 3"], architecture: str, what: What) -> int:
    """Floating-point operations of the convolutions, and of the heads where they take part."""
    student, total = Student({}, architecture).eval(), 0

    def count(module: ConvNorm, args: tuple[Any, ...]) -> None:
        nonlocal total
        x, kernel_map = args[:2]
        pairs = len(x) if kernel_map is None else kernel_map.num_pairs
        total += 2 * pairs * module.kernel.shape[-2] * module.kernel.shape[-1]

    for module in student.modules():
        if isinstance(module, ConvNorm):
            module.register_forward_pre_hook(count)
    with torch.no_grad():
        student.hidden(coords, feats)
    heads = 2 * len(coords) * student.num_hidden * sum(HEADS.values())
    return total + heads if what == "forward" else 3 * total


if __name__ == "__main__":
    tyro.cli(main)
