"""Check of every scene of a dataset, and an estimate of what lifting them all would take."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from cuao3d.check import Report, check
from cuao3d.check.cost import Estimate, Prospect, estimate, prospects
from cuao3d.errors import UserError
from cuao3d.readers import Dataset
from cuao3d.readers.capture import NoDepthError
from cuao3d.scene import Scene
from cuao3d.store import CELL
from cuao3d.teachers import TeacherSpec

OnScene = Callable[[int, Scene | None, Report], None]
"""Called with a scene's place in its dataset, the scene unless it is unreadable, and its report."""


@dataclass(frozen=True)
class Checked:
    """What was found out about a dataset."""

    reports: dict[str, Report]
    """Report of each scene, by name."""
    teachers: tuple[Prospect, ...]
    """The teachers whose costs were asked for."""
    estimates: dict[str, Estimate]
    """What lifting each readable scene by them would take, by name."""

    @property
    def exit_code(self) -> int:
        """Exit code of the command line: that of the worst scene."""
        return max(report.exit_code for report in self.reports.values())

    def as_json(self) -> dict[str, Any]:
        """Return what `cuao3d check --json` writes; see docs/check.md."""
        scenes = {name: asdict(report) | {"exit_code": report.exit_code} for name, report in self.reports.items()}
        for name, one in self.estimates.items():
            scenes[name]["estimate"] = asdict(one)
        header = {"format": "cuao3d-check", "format_version": 1, "teachers": [asdict(one) for one in self.teachers]}
        return header | {"scenes": scenes}


def check_dataset(
    dataset: Dataset, *, teachers: Sequence[TeacherSpec | str] = (), cell: float = CELL, on_scene: OnScene | None = None
) -> Checked:
    """Check every scene of a dataset; one that cannot be read is reported and does not stop the others.

    Args:
        dataset: Where the scenes come from.
        teachers: Teachers whose costs to estimate, of `parse_teachers` or as they are written.
        cell: Edge of a sample cell of that lifting, metres.
        on_scene: Called after each scene.

    Raises:
        InputError: A teacher is unknown.
    """
    reports: dict[str, Report] = {}
    known: list[Prospect] = []
    estimates: dict[str, Estimate] = {}
    for index, name in enumerate(dataset.names):
        scene = None
        try:
            scene = dataset[index]
            reports[name] = check(scene)
        except (UserError, OSError) as error:
            options = dict(error.options) if isinstance(error, NoDepthError) else {}
            reports[name] = Report("unreadable", (str(error),), options=options)
        if teachers and scene is not None and reports[name].verdict != "unreadable":
            seen = reports[name].measurements["coverage"]["seen"]
            try:
                known = known or prospects(teachers, scene, cell=cell)
                estimates[name] = estimate(scene, known, cell=cell, seen=seen)
            except (UserError, OSError) as error:
                text = f"What lifting it takes could not be estimated: {error}"
                reports[name] = replace(reports[name], reasons=(*reports[name].reasons, text))
        if on_scene is not None:
            on_scene(index, scene, reports[name])
    return Checked(reports, tuple(known), estimates)
