"""The embedded corpus."""

import io
import sysconfig
import tokenize
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from distill.data import stdlib

SOURCE = '''# A comment at the top.

"""The module's docstring,
of two lines."""

import os


class A:
    """Of the class."""

    text = """no docstring"""

    def f(self):
        """Of the method.

        Body,
            indented further.
        """
        return 1  # stays

    async def g(self): "é"; return 2


class E(Exception):
    """Nothing but this."""


def last():
    return "no docstring"
'''

CODE = '''# A comment at the top.

import os


class A:

    text = """no docstring"""

    def f(self):
        return 1  # stays

    async def g(self): ; return 2


class E(Exception):


def last():
    return "no docstring"
'''

PROSE = """The module's docstring,
of two lines.

Of the class.

Of the method.

Body,
    indented further.

é

Nothing but this."""


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of a few files."""
    root = tmp_path / "lib"
    for name in ("b.py", "a/c.py", "a/test/t.py", "site-packages/s.py", "encodings/e.py", "_sysconfigdata_x.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(SOURCE.replace("Of the class.", f"Of the class in {name}."))
    (root / "empty.py").write_text("")
    (root / "broken.py").write_text("def")
    (root / "latin.py").write_bytes(b"x = '\xe9'")
    (root / "a" / "notes.txt").write_text("no source")
    (root / "pydoc_data").mkdir()
    (root / "pydoc_data" / "topics.py").write_text("topics = {}")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))
    stdlib._corpus.cache_clear()
    yield root
    stdlib._corpus.cache_clear()


def test_docstrings_are_cut_out_and_everything_else_stays():
    assert stdlib.split_docstrings(SOURCE) == (CODE, PROSE)


def test_a_file_that_is_one_docstring_has_no_code():
    assert stdlib.split_docstrings('("in "\n "parts")\n') == ("", "in parts")


def test_the_library_is_what_python_itself_brings(library: Path):
    names = ["a/c.py", "b.py", "broken.py", "empty.py", "latin.py"]
    assert list(stdlib.sources()) == names
    assert [*stdlib._corpus()["code"]] == ["a/c.py", "b.py"]
    assert {"a/c.py", "b.py"} | {f"pydoc_data/topics.py:{name}" for name in topics} == set(stdlib._corpus()["prose"])


def test_a_file_is_on_the_same_side_with_code_and_docstrings(library: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stdlib, "_side", lambda name: "validation" if name == "b.py" else "train")
    code, prose = stdlib.documents("code"), stdlib.documents("prose")
    assert [len(code[side]) for side in ("train", "validation")] == [1, 1]
    assert len(prose["train"]) == len(topics) + 1
    assert "in b.py" in prose["validation"][0] and "in a/c.py" in prose["train"][0]


def test_the_sides_are_stable_and_about_six_percent():
    assert [stdlib._side(name) for name in ("abc.py", "json/decoder.py")] == ["train", "validation"]
    held = sum(stdlib._side(f"file{i}.py") == "validation" for i in range(10_000))
    assert 500 < held < 700
    assert [i for i in range(60) if stdlib._side(f"file{i}.py") == "validation"] == [8, 31, 49]


def test_the_fingerprint_follows_the_files(library: Path):
    before = stdlib.fingerprint()
    assert stdlib.fingerprint() == before
    (library / "b.py").write_text("x = 2")
    assert stdlib.fingerprint() != before


def test_the_real_library_is_a_corpus_of_megabytes():
    code, prose = stdlib.documents("code"), stdlib.documents("prose")
    assert sum(map(len, code["train"])) > 5_000_000 and sum(map(len, prose["train"])) > 1_500_000
    assert sum(map(len, code["validation"])) > 150_000 and sum(map(len, prose["validation"])) > 40_000


def test_the_real_code_keeps_every_token_but_the_docstrings():
    source = Path(sysconfig.get_path("stdlib"), "textwrap.py").read_text()
    code, prose = stdlib.split_docstrings(source)
    kept = [token.string for token in tokenize.generate_tokens(io.StringIO(source).readline) if token.string.strip()]
    for token in (token for token in kept if not token.startswith(('"""', 'r"""'))):
        assert token in code
    assert '"""' not in code and "Text wrapping and filling." in prose
