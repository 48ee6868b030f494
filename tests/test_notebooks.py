"""The notebooks run from the first cell to the last, and what is kept of them is small and of no machine.

To make the outputs again: jupyter execute --inplace experiments/notebooks/NAME.ipynb
"""

import nbformat
import pytest
from nbclient import NotebookClient

from goldfish.config import home

NOTEBOOKS = sorted((home() / "experiments" / "notebooks").glob("*.ipynb"))
CLAIM = """
assert table.loc["standard", "injected"] > 0.6 > table.loc["goldfish, k = 4", "injected"], table
assert found[found.split == "never_seen"].longest_prefix.max() < 8, found
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_kept_outputs_are_those_of_one_pass_and_name_no_machine(path):
    assert path.stat().st_size < 60_000
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert len([output for output in outputs if "image/png" in output.get("data", {})]) == 1
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr"
        shown = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        assert "site-packages" not in shown and str(home()) not in shown, shown


@pytest.mark.slow
def test_the_tour_runs_and_shows_that_only_the_standard_loss_recites(tmp_path):
    notebook = nbformat.read(home() / "experiments" / "notebooks" / "tour.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(CLAIM))
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert not [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
    ]
