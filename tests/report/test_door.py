"""`python -m distill.report`: exit codes and the one line that a mistake is worth."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.report.__main__ import main

MakeRun = Callable[..., Path]


def test_the_module_runs_and_imports_no_training_code(make_run: MakeRun) -> None:
    run = make_run()
    code = (
        "import sys; from distill.report.__main__ import main; code = main(sys.argv[1:]); "
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'lightning', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{run / 'report' / 'report.html'}\n"


def test_without_sections_those_of_the_run_are_rebuilt(make_run: MakeRun) -> None:
    run = make_run()
    config = (
        (run / "config.yaml")
        .read_text()
        .replace("[headline, fidelity, transfer, contribution, length, cost]", "[headline]")
    )
    (run / "config.yaml").write_text(config)
    assert main([str(run)]) == 0
    assert "not asked for" in (run / "report/report.md").read_text().split("fidelity:")[1].splitlines()[0]
    (run / "config.yaml").unlink()
    assert main([str(run)]) == 0
    assert "fidelity:" not in (run / "report/report.md").read_text()


@pytest.mark.parametrize("kept", [0, 10, 60])
def test_a_configuration_that_was_cut_off_is_left_out(
    make_run: MakeRun, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distill.report.plots.draw", lambda paint, height, alt: "<svg></svg>")
    run = make_run()
    (run / "config.yaml").write_text(("recipe: [" + (run / "config.yaml").read_text())[:kept])
    assert main([str(run)]) == 0
    assert "skipped" not in json.loads((run / "report/report.json").read_text())["length"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "nowhere: no such run directory"),
        (["empty"], "empty: not a run directory"),
        (
            ["run", "--sections", "headline,colour"],
            "'colour' is unknown; there are contribution, cost, fidelity, headline, length, provenance, transfer",
        ),
        (["run", "--sections", "../run"], "'../run' is unknown"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    make_run()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.err.count("\n") == 1
    assert printed.out == "" and not list(tmp_path.glob("*/report"))
