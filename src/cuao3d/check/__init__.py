"""Pre-flight check: do poses, depth, intrinsics and colours fit together, or which usual mistake would make them fit?

`consistency.py` moves pixels between views, under every usual mistake in turn; `registration.py` lays colours on
depth; `cuao3d.gravity` finds up; here all of it becomes a verdict. `pictures.py` draws it, `page.py` makes it a page.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from cuao3d.check.cloud import Cells, coverage_of, settled_by_cloud, views_of_cells
from cuao3d.check.consistency import Consistency, choose_pairs, joined_views, likeliest_reading, measure_readings
from cuao3d.check.findings import (
    Finding,
    contradiction,
    lost_frames,
    misfit,
    misplaced_colors,
    noisy_poses,
    odd_coverage,
    odd_depth,
    odd_intrinsics,
    odd_photos,
    tilted,
    untested,
    upside_down,
)
from cuao3d.check.frames import stray_frames
from cuao3d.check.layers import lay
from cuao3d.check.order import frames_elsewhere
from cuao3d.check.readings import AS_GIVEN, Reading
from cuao3d.check.views import View, num_probes, on_one_thread, poses_of, read_views
from cuao3d.gravity import find_up
from cuao3d.scene import Camera, Scene

CaptureVerdict = Literal["ok", "doubtful", "probably wrong", "unreadable"]

BLURRED = 0.1
"""A photograph is called blurred where its Laplacian varies less than this part of the median: a tenth is a walk's
motion blur, a third is a white wall."""

DARK, BRIGHT = 0.35, 1.8
"""A photograph is called dark or bright below and above these parts of the capture's median brightness."""

UNDEREXPOSED = 0.08
"""A photograph is underexposed where half of it is darker than this; made rooms and a real one have 0.18 and more."""

OVEREXPOSED = 2 / 3
"""... and overexposed where more than this share of it is `views.WHITE`; they have at most a half."""


@dataclass(frozen=True)
class Report:
    """What was found out about a scene before anything is computed from it."""

    verdict: CaptureVerdict
    """Whether to go on."""
    reasons: tuple[str, ...]
    """Why, a line each; with the verdict "ok", what was left out or could not be tested."""
    measurements: dict[str, Any] = field(default_factory=dict)
    """What was measured; JSON-able. Lengths in metres, shares in [0, 1]."""
    causes: tuple[str, ...] = ()
    """What is wrong, in a word for each of the first reasons; empty if the verdict is "ok" or "unreadable"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options for the `capture.json` beside the data; `capture_options` merges them with the existing ones."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: 0 = ok, 1 = probably wrong or doubtful, 2 = unreadable."""
        return {"ok": 0, "doubtful": 1, "probably wrong": 1, "unreadable": 2}[self.verdict]


@on_one_thread()
def check(scene: Scene) -> Report:
    """Find out whether a scene's poses, depth, intrinsics, colours and cloud fit together.

    Args:
        scene: The scene; at most `views.MAX_VIEWS` of its views are read.
    """
    if scene.frames and not any(frame.has_colors for frame in scene.frames):
        no_colors = f"Scene {scene.name} has no colour images, which teachers and this check need."
        return Report("unreadable", (f"{no_colors} Points alone: cuao3d fuse DATA --out STORE --teachers none.",))
    read = read_views(scene)
    views, left_out = read.views, [*scene.problems, *read.problems]
    if not views or not len(scene.points):
        missing = "point" if views else "view that can be read"
        return Report("unreadable", (f"Scene {scene.name} has no {missing}.", *map(str, left_out)))
    camera = next(frame.camera for frame in scene.frames if frame.name == views[0].name)
    consistency, cells = measure_readings(views, camera), views_of_cells(scene, views)
    likeliest = likeliest_reading(consistency)
    if likeliest is AS_GIVEN:
        likeliest = settled_by_cloud(cells, views, consistency)
    measurements = _measure(scene, camera, views, consistency, likeliest, cells) | {"num_left_out": len(left_out)}
    findings = [*lost_frames(scene, read), *_misfits(scene, camera, views, cells, consistency, likeliest, measurements)]
    remarks = [
        *map(str, left_out),
        *untested(consistency, likeliest),
        *noisy_poses(measurements),
        *odd_photos(measurements["photos"], len(views)),
    ]
    options = {key: value for finding in findings for key, value in finding.options.items()}
    if not findings:
        said, options = tilted(measurements["up"])
        remarks += said
    return Report(
        _verdict(findings),
        (*(finding.line for finding in findings), *remarks),
        measurements,
        tuple(finding.cause for finding in findings),
        options,
    )


def _verdict(findings: Sequence[Finding]) -> CaptureVerdict:
    if not findings:
        return "ok"
    return "doubtful" if all(finding.is_doubtful for finding in findings) else "probably wrong"


def _misfits(
    scene: Scene,
    camera: Camera,
    views: list[View],
    cells: Cells,
    consistency: dict[Reading, Consistency],
    likeliest: Reading,
    measurements: dict[str, Any],
) -> list[Finding]:
    """List what does not fit together: views, cloud, colours, up."""
    median = measurements["depth"]["median"]
    explained = odd_intrinsics(camera, consistency, likeliest) or misfit(consistency, likeliest, median, cells, views)
    if not explained and (doubt := contradiction(consistency[AS_GIVEN], None)):
        order = frames_elsewhere(scene, views)
        explained = contradiction(consistency[AS_GIVEN], order) if order else doubt
    elsewhere = odd_coverage(measurements["coverage"]) if not explained and likeliest is AS_GIVEN else []
    return [
        *explained,
        *odd_depth(median, likeliest),
        *elsewhere,
        *misplaced_colors(measurements["registration"]),
        *([] if explained or elsewhere else upside_down(measurements["up"])),
    ]


def _measure(
    scene: Scene,
    camera: Camera,
    views: list[View],
    consistency: dict[Reading, Consistency],
    likeliest: Reading,
    cells: Cells,
) -> dict[str, Any]:
    num_moved = max(int(num_probes(views).sum()) * (len(views) - 1), 1)
    depth = torch.cat([view.depth.flatten() for view in views])
    rotations = poses_of(views)[:, :3, :3]
    near, median, far = np.quantile(depth[depth > 0].numpy(), [0.05, 0.5, 0.95]).tolist() if depth.any() else [0.0] * 3
    found = consistency[likeliest]
    joined, group_of_view = joined_views(views, found)
    return {
        "num_frames": len(scene.frames),
        "num_views_tested": len(views),
        "num_points": len(scene.points),
        "occlusion_tolerance": scene.occlusion_tolerance,
        "image_sizes": sorted({(frame.camera.width, frame.camera.height) for frame in scene.frames}),
        "focal": camera.focal.tolist(),
        "center": camera.center.tolist(),
        "rotation_error": (rotations @ rotations.mT - torch.eye(3).double()).abs().max().item(),
        "depth": {"near": near, "median": median, "far": far, "missing": (depth == 0).double().mean().item()},
        "readings": {
            reading.name: {
                "agreeing": one.agreement / num_moved,
                "consistent": one.consistent,
                "median_error": one.median_error,
            }
            for reading, one in consistency.items()
        },
        "likeliest": likeliest.name,
        "overlap": {
            "neighbours_per_view": joined.sum().item() / len(views),
            "groups": len(set(group_of_view)),
            "apart": _apart(views, group_of_view),
        },
        "pairs": choose_pairs(views, found),
        "stray": stray_frames(views, found),
        "pose_noise": found.median_error / median if found.median_error is not None and median > 0 else None,
        "coverage": coverage_of(cells, views),
        "registration": lay(scene, views)._asdict(),
        "up": find_up([likeliest.camera(view.camera) for view in views], [view.depth for view in views]),
        "photos": _photos(views),
    }


def _apart(views: list[View], group_of_view: list[int]) -> list[str]:
    """Name the views outside the largest group."""
    largest = int(np.bincount(group_of_view).argmax())
    return [view.name for view, group in zip(views, group_of_view, strict=True) if group != largest]


def _photos(views: list[View]) -> dict[str, Any]:
    """Find photographs that are badly exposed, or, where there are not only a few, unlike the others."""
    sharpness = np.array([view.photo.sharpness for view in views])
    brightness = np.array([view.photo.brightness for view in views])
    usual_sharpness, usual = float(np.median(sharpness)), float(np.median(brightness))
    odd = {
        "blurred": sharpness < BLURRED * usual_sharpness,
        "dark": brightness < DARK * usual,
        "bright": brightness > BRIGHT * usual,
    }
    if len(views) < 5:
        odd = {kind: np.zeros(len(views), dtype=bool) for kind in odd}
    odd["underexposed"] = np.array([view.photo.median < UNDEREXPOSED for view in views])
    odd["overexposed"] = np.array([view.photo.white > OVEREXPOSED for view in views])
    return {"sharpness": usual_sharpness, "brightness": usual} | {
        kind: [view.name for view, is_odd in zip(views, found, strict=True) if is_odd] for kind, found in odd.items()
    }
