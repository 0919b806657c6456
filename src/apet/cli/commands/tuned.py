"""Commands that show and export tuned models."""

from __future__ import annotations

from pathlib import Path

from apet.cli.registry import EXAMPLE, RESULTS_DIR, Format, command

STAGE = "Tuned models"


@command(STAGE, f"apet show results/cells/{EXAMPLE}")
def show(cell: str, *, results_dir: Path = RESULTS_DIR) -> None:
    """Print a cell's plans, losses, scores, digests and run record."""
    from apet.cli.show import show as cell_lines
    from apet.study.cell_record import find_cell
    from apet.study.paths import ResultPaths

    paths = ResultPaths(results_dir)
    print("\n".join(cell_lines(find_cell(cell, paths), paths)))


@command(
    STAGE,
    f"apet export results/cells/{EXAMPLE} --format peft --out-dir my-adapter",
    f"apet export results/cells/{EXAMPLE} --format delta --replicate plan0.seed1 --out-dir my-delta",
)
def export(
    cell: str,
    *,
    format: Format,
    replicate: str = "plan0.seed0",
    out_dir: Path,
    results_dir: Path = RESULTS_DIR,
    project_dir: Path = Path(),
) -> None:
    """Write a cell's tuned model as a PEFT adapter, a Hugging Face model folder, or a delta."""
    from apet.export.formats import export_model
    from apet.export.restore import load_tuned
    from apet.study.cell_record import find_cell
    from apet.study.paths import ResultPaths

    folder = find_cell(cell, ResultPaths(results_dir))
    print(export_model(load_tuned(folder, root=project_dir, replicate=replicate), format, out_dir))
