"""What is typed wrongly is told in one line, by every command."""

import subprocess
import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("command", "wrong", "said"),
    [
        ("bench", ["attention", "--heads", "x"], "--heads: invalid int value: 'x'; see {} attention --help"),
        ("bench", ["atention"], "what: invalid choice: 'atention'"),
        ("export", [], "the following arguments are required: "),
        ("report", ["there", "--of"], "unrecognized arguments: --of; see {} --help"),
        ("report", ["compare", "there"], "the following arguments are required: --out; see {} compare --help"),
        ("serve", ["there", "--port"], "--port: expected one argument; see {} --help"),
        ("sweep", [], "the following arguments are required: "),
    ],
)
def test_a_mistake_is_one_line(command: str, wrong: list[str], said: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        import_module(f"distill.{command}.__main__").main(wrong)
    out, told = capsys.readouterr()
    assert ended.value.code == 2 and not out and told.count("\n") == 1
    assert told.startswith("distill: " + said.format(f"python -m distill.{command}"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["train", "nowhere"], "nowhere: no such directory"),
        (["step", "--heads", "4", "--kv-heads", "3"], "--heads 4 must be a multiple of --kv-heads 3"),
        (["attention", "--head-dim", "0"], "--heads 12, --kv-heads 12, --head-dim 0: at least 1 each"),
        (["attention", "--mixer", "softmax"], "--mixer softmax: it stands beside every other; give another"),
    ],
)
def test_nobody_waits_for_torch_to_be_told_of_it(wrong: list[str], said: str):
    code = "import sys; from distill.bench.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *wrong], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("2 False\n", f"distill: {said}\n")
