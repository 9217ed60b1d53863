"""How well confidence tells wrong labels, as a table and as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cuao3d.console import tell, tell_table
from cuao3d.errors import InputError

if TYPE_CHECKING:
    from cuao3d.metrics import Row

ENDINGS = (".png", ".pdf", ".svg")
"""Pictures that can be drawn."""


def check_picture(path: Path | None) -> None:
    """Refuse a picture of another kind, before any work is done.

    Raises:
        InputError: Its ending is none of `ENDINGS`.
    """
    if path is not None and path.suffix not in ENDINGS:
        raise InputError(f"--curves {path} should end in {', '.join(ENDINGS)}.")


def print_trust(rows: Sequence["Row"]) -> None:
    """Print how well the confidence of each row tells its wrong labels."""
    lines = []
    for row in rows:
        if (trust := row.trust) is not None:
            area = "-" if trust.auroc is None else f"{trust.auroc:.3f}"
            off = "-" if trust.calibration_error is None else f"{trust.calibration_error:.1f}"
            errors = [f"{trust.error_at[percent]:.1f}" for percent in ("50", "80", "90")]
            lines.append((row.model, row.readout, f"{trust.error:.1f}", *errors, f"{trust.aurc:.1f}", area, off))
    if not lines:
        return
    titles = ("wrong labels, %", "of surest 50 %", "of 80 %", "of 90 %", "AURC", "AUROC of errors", "calibration error")
    tell_table(("model", "read-out", *titles), lines, num_names=2)
    fitted = {row.trust.measured_on for row in rows if row.trust is not None}
    if "" in fitted:
        tell("confidence was not fitted, so its error is not told: cuao3d store calibrate STORE [--run RUN]")
    for measured_on in sorted(fitted - {""}):
        tell(f"confidence was fitted on {measured_on}")


def draw_trust(path: Path, rows: Sequence["Row"]) -> None:
    """Draw the reliability diagram and the risk-coverage curve of each row; `path` is written whole or not at all."""
    from matplotlib.figure import Figure

    from cuao3d.files import write_whole

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    reliability, risk = figure.subplots(1, 2)
    reliability.plot([0, 1], [0, 1], color="0.7", linestyle=":", label="calibrated")
    for row in rows:
        if row.trust is not None:
            name = f"{row.model}, {row.readout}" if row.model != "none" else row.readout
            confidence, right, _ = zip(*row.trust.reliability, strict=True)
            reliability.plot(confidence, right, marker="o", markersize=4, label=name)
            coverage, error = zip(*row.trust.curve, strict=True)
            (line,) = risk.plot(coverage, error, label=name)
            risk.axhline(row.trust.error, color=line.get_color(), linestyle=":", linewidth=1)
    reliability.set(title="Reliability", xlabel="confidence", ylabel="share of right labels", xlim=(0, 1), ylim=(0, 1))
    risk.set(title="Risk and coverage (dotted: withheld at random)", xlabel="labels kept, %", ylabel="wrong labels, %")
    risk.set(xlim=(0, 100), ylim=(0, None))
    for axes in (reliability, risk):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    write_whole(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=120))
