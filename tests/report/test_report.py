"""What a report holds, and what becomes of it when artefacts are missing, broken or hostile."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from distill.errors import UserError
from distill.report import build, render, sections
from distill.report.build import CONTRACT
from distill.report.run import Run
from distill.report.terms import Linker

BOTH = ["headline", "fidelity"]
HOSTILE = "<script>alert('x')</script>|$\\frac{1}$"

MakeRun = Callable[..., Path]


class Page(HTMLParser):
    """Every start tag of a page, and its text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(report: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads((report / "report.json").read_text(), parse_constant=refuse)
    return content


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture(scope="module")
def report(run_dir: Path) -> Path:
    return render(run_dir, BOTH)


def test_every_key_of_the_contract_is_there(report: Path) -> None:
    content = read(report)
    assert list(content) == ["version", *CONTRACT]
    assert set(CONTRACT) == {"headline", "fidelity", "transfer", "contribution", "length", "cost", "provenance"}
    for name in ("transfer", "contribution", "length", "cost"):
        assert content[name] == {"skipped": "not asked for in report.sections"}
    assert {entry.name for entry in report.iterdir()} == {"report.json", "report.md", "report.html", "figures"}


def test_the_content_is_as_its_schema_says(make_run: MakeRun) -> None:
    """Whole, and with every section skipped; and the schema knows what is wrong."""
    schema = json.loads(Path(build.__file__).with_name("schema.json").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    whole = read(render(make_run(), sections.available()))
    validator.validate(whole)
    assert whole["version"] == build.VERSION and not any("skipped" in whole[name] for name in CONTRACT)
    validator.validate(whole | {name: {"skipped": "no reason"} for name in CONTRACT})
    for change in (
        {"version": 2},
        {"headline": {}},
        {"transfer": whole["transfer"] | {"seeds": []}},
        {"cost": whole["cost"] | {"prefill": {"teacher": ["slow"], "student": [1.0]}}},
        {"contribution": whole["contribution"] | {"nats": {}}},
    ):
        assert not validator.is_valid(whole | change), change


def test_numbers_are_those_of_the_artefacts(run_dir: Path, report: Path) -> None:
    content = read(report)
    for name, file in (
        ("headline", "measurements/headline.json"),
        ("fidelity", "measurements/fidelity.json"),
        ("provenance", "student/provenance.json"),
    ):
        artefact = json.loads((run_dir / file).read_text())
        assert {key: content[name][key] for key in artefact} == artefact
    text = Page((report / "report.html").read_text()).text
    for shown in ("1.18×", "1.12×", "1.181 ± 0.009", "82.3\N{NO-BREAK SPACE}%", "teachers/books-6x512", "5f2c"):
        assert shown in text


def test_a_section_not_asked_for_says_so_but_provenance_is_always_there(make_run: MakeRun) -> None:
    content = read(render(make_run(), ["headline"]))
    assert content["fidelity"] == {"skipped": "not asked for in report.sections"}
    assert content["provenance"]["teacher"]["name"] == "books-6x512"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time of a report."""
    monkeypatch.setattr("distill.report.plots.draw", lambda paint, height, alt: "<svg></svg>")


@pytest.mark.parametrize("name", [name for name in CONTRACT if name != "provenance"])
def test_a_missing_artefact_is_the_reason(make_run: MakeRun, name: str, undrawn: None) -> None:
    run, others = make_run(), [each for each in CONTRACT if each != name]
    (run / f"measurements/{name}.json").unlink()
    report = render(run, list(CONTRACT))
    assert read(report)[name] == {"skipped": f"measurements/{name}.json is missing"}
    assert not any("skipped" in read(report)[each] for each in others)
    for page in ("report.html", "report.md"):
        assert f"measurements/{name}.json is missing" in (report / page).read_text().replace("\\_", "_")


@pytest.mark.parametrize("name", [name for name in CONTRACT if name != "provenance"])
def test_a_truncated_artefact_is_named(make_run: MakeRun, name: str, undrawn: None) -> None:
    run, others = make_run(), [each for each in CONTRACT if each != name]
    file = run / f"measurements/{name}.json"
    file.write_text(file.read_text()[:150])
    content = read(render(run, list(CONTRACT)))
    assert content[name]["skipped"].startswith(f"measurements/{name}.json is damaged or cut off")
    assert not any("skipped" in content[each] for each in others)


def test_a_broken_section_does_not_stop_the_others(make_run: MakeRun) -> None:
    run = make_run()
    edit(run / "measurements/fidelity.json", domains=7)
    content = read(render(run, BOTH))
    assert content["fidelity"]["skipped"].startswith("measurements/fidelity.json, or what goes with it, is not as")
    assert "student_ppl" in content["headline"]


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    report = render(make_run(domains=(HOSTILE, "../../prose")), list(CONTRACT))
    source = (report / "report.html").read_text()
    assert len(Page(source).named("script")) == source.count("<script") == 1 and HOSTILE in Page(source).text
    assert "<script" not in (report / "report.md").read_text()
    assert set(read(report)["headline"]["ratio"]) == {HOSTILE, "../../prose"}
    for figure in (report / "figures").iterdir():
        assert re.fullmatch(r"[a-z0-9-]+\.svg", figure.name)
        assert "<script" not in figure.read_text()
    tables = re.findall(r"(?:^\|.*\n)+", (report / "report.md").read_text(), re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
    assert len(tables) > 15


def test_the_page_needs_nothing_from_elsewhere(report: Path) -> None:
    source = (report / "report.html").read_text()
    without_namespaces = re.sub(r'xmlns(:\w+)?="[^"]*"', "", source)
    assert not re.search(r"https?:|url\(\s*['\"]?//|@import", without_namespaces)
    page = Page(source)
    assert page.named("script") == [{}] and not page.named("link") and not page.named("img")
    # The page itself forbids everything else, and knows its script by what is in it.
    (policy,) = [tag["content"] or "" for tag in page.named("meta") if tag.get("http-equiv")]
    script = source.partition("<script>")[2].partition("</script>")[0]
    known = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ") and policy.endswith(f"script-src 'sha256-{known}'")
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))


def test_the_contents_lead_to_every_section(report: Path) -> None:
    page = Page((report / "report.html").read_text())
    links = [attributes["href"] for attributes in page.named("a") if attributes.get("class") != "term"]
    assert links == ["#headline", "#fidelity", "#provenance", "#skipped", "#terms"]
    assert [f"#{attributes['id']}" for attributes in page.named("section")] == links


def test_claims_lead_to_what_their_numbers_mean(report: Path) -> None:
    """Each to a definition that is there, none to one that nothing leads to, and a word once in a sentence."""
    source = (report / "report.html").read_text()
    page = Page(source)
    led = {attributes["href"] for attributes in page.named("a") if attributes.get("class") == "term"}
    there = {
        f"#{attributes['id']}" for attributes in page.named("div") if (attributes.get("id") or "").startswith("term-")
    }
    assert led == there and {"#term-perplexity", "#term-kl", "#term-state"} <= led and "#term-crossover" not in led
    verdict = source.partition('<p class="verdict">')[2].partition("</p>")[0]
    assert verdict.startswith('<a class="term" href="#term-perplexity">Perplexity</a> is ')
    assert verdict.count("#term-perplexity") == 1
    linker = Linker()
    assert linker.linked("<b>stateful states & a state</b>") == (
        '&lt;b&gt;stateful states &amp; a <a class="term" href="#term-state">state</a>&lt;/b&gt;'
    )
    assert [term for _, term, _ in linker.definitions()] == ["state"]


def test_figures_have_alternative_text_and_lie_beside_the_page(report: Path) -> None:
    drawings = Page((report / "report.html").read_text()).named("svg")
    assert len(drawings) == 3 + 2 * 2 + 2 * 3 + 2
    assert "code 1.00×, 7.44×, 1.69×, 1.18×" in (drawings[0]["aria-label"] or "")
    assert all(drawing["role"] == "img" and len(drawing["aria-label"] or "") > 20 for drawing in drawings)
    shown = re.findall(r"!\[(.+?)\]\((figures/.+?)\)", (report / "report.md").read_text())
    assert sorted(file for _, file in shown) == sorted(
        f"figures/{file.name}" for file in (report / "figures").iterdir()
    )
    for drawing, (_, file) in zip(drawings, shown, strict=True):
        standalone = Page((report / file).read_text()).named("svg")
        assert standalone[0]["aria-label"] == drawing["aria-label"]


def test_figures_take_their_ink_from_the_page(report: Path) -> None:
    for file in (report / "figures").iterdir():
        drawing = file.read_text()
        assert "currentColor" in drawing and "prefers-color-scheme:dark" in drawing
        assert not re.search(r"(fill|stroke): (#000000|#ffffff|black|white)", drawing)


def test_the_same_artefacts_give_the_same_bytes(make_run: MakeRun) -> None:
    first, second = (render(make_run(name), BOTH) for name in ("first", "second"))
    files = sorted(file.relative_to(first) for file in first.rglob("*") if file.is_file())
    assert files == sorted(file.relative_to(second) for file in second.rglob("*") if file.is_file())
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_a_rebuild_replaces_the_whole_folder(make_run: MakeRun) -> None:
    run = make_run()
    report = render(run, BOTH)
    (report / "figures/stale.svg").write_text("old")
    before = set(run.iterdir())
    assert render(run, ["headline"]) == report
    assert not (report / "figures/stale.svg").exists()
    assert set(run.iterdir()) == before


def test_a_failed_write_leaves_the_old_report(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run()
    render(run, ["headline"])
    before = (run / "report/report.html").read_bytes()

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("distill.report.build._write_text", full)
    with pytest.raises(UserError, match="cannot be written, No space left on device"):
        render(run, BOTH)
    assert (run / "report/report.html").read_bytes() == before
    assert not list(run.glob(".report-*"))


def test_a_new_section_is_one_new_file(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "money.py").write_text(
        "from distill.report.section import Section\n"
        "def section(run):\n    return Section(title='Money', intro='In money.', data={'price': 3})\n"
    )
    monkeypatch.setattr(sections, "__path__", [*sections.__path__, str(tmp_path)])
    report = render(make_run(), ["money"])
    assert read(report)["money"] == {"price": 3}
    assert "In money." in (report / "report.html").read_text()


def test_the_head_of_the_page_tells_what_a_mixer_has_and_not_what_it_lacks(tmp_path: Path):
    mixer = {
        "map": "spectral",
        "key_weight": "none",
        "decay": "learned",
        "decay_groups": 4,
        "window": 0,
        "features": 126,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"mixer": mixer | {"rates": {"attention": 1.0}}, "seed": 0}))
    assert dict(Run(tmp_path).identity)["mixer"] == "spectral, decay learned, decay_groups 4, features 126"
