"""The tables of a comparison."""

from collections.abc import Iterable

from ..quantities import DASH, number, share, size, times, with_error
from ..section import Table
from .case import family, feature_dim, is_ceiling, is_control, parse
from .command import sweeps
from .compared import Compared
from .goals import kept, told_apart
from .rows import GAP, Row
from .words import commits

#: The caption of the table of goals.
GOALS = "Goals"
#: What tells how often an answer is right, and what it is called.
SCORES = {"accuracy": "Accuracy", "f1": "F1", "mcc": "MCC", "cosine": "Cosine to teacher"}

#: Whose right answers the mixers' are held against, and how these are called.
AGAINST = {"constant": "always the same answer", "teacher": "teacher", "teacher_tuned": "teacher, tuned"}


def quality_table(found: Compared) -> Table:
    per_domain = {"KL": "map_kl", "Ratio": "ratio", "Stage 1": "stage1_ratio"}
    heads = [f"{head}, {domain}" for head in per_domain for domain in found.domains]
    rows = []
    for mixer in found.mixers:
        cells = [number(found.value(mixer, domain, "map_kl")) for domain in found.domains]
        cells += [
            with_error(found.value(mixer, domain, "ratio"), found.spread(mixer, domain, "ratio"))
            for domain in found.domains
        ]
        cells += [times(found.value(mixer, domain, "stage1_ratio")) for domain in found.domains]
        rows.append([*names(mixer), size(found.memory(mixer)), *cells])
    return Table("Quality and size of state", ["Mixer", "F", "State", *heads], rows, aside=aside(found.mixers))


def beside_table(found: Compared) -> Table:
    """What else is known, for those who look for the reason. Metrics that no mixer has, and mixers that have none, are
    left out."""
    shown = {
        "output_error": ("Output error", number),
        "kl": ("KL to teacher", number),
        "agreement": ("Same first choice", share),
        "teacher_tuned_ratio": ("Teacher tuned", times),
        "teacher_tuned_kl": ("Tuned, KL to teacher", number),
    }
    metrics = [metric for metric in shown if found.known(metric)]
    heads = [f"{shown[metric][0]}, {domain}" for metric in metrics for domain in found.domains]
    rows = [
        [
            *names(mixer),
            *(shown[metric][1](found.value(mixer, domain, metric)) for metric in metrics for domain in found.domains),
        ]
        for mixer in found.mixers
    ]
    known = {mixer: row for mixer, row in zip(found.mixers, rows, strict=True) if set(row[2:]) - {DASH}}
    return Table("Other measures of quality", ["Mixer", "F", *heads], list(known.values()), aside=aside(known))


def score_table(found: Compared) -> Table:
    """How often an answer is right, where a text has a right one: first those that the mixers are held against."""
    columns = [(score, domain) for score in SCORES if found.known(score) for domain in found.domains]
    scored = [mixer for mixer in found.mixers if any(found.row(mixer, domain, score) for score, domain in columns)]
    if not scored:
        return Table("", [], [])

    def of(who: str, score: str, domain: str) -> float | None:
        values = (found.value(mixer, domain, f"{who}_{score}") for mixer in scored)
        return next((value for value in values if value is not None), None)

    def cell(mixer: str, score: str, domain: str) -> str:
        value, spread = found.value(mixer, domain, score), found.spread(mixer, domain, score)
        return share(value) if value is None or spread is None else f"{share(value)} ± {100 * spread:.1f}"

    against = {name: [of(who, *column) for column in columns] for who, name in AGAINST.items()}
    rows = [
        [name, DASH, *map(share, each)] for name, each in against.items() if any(value is not None for value in each)
    ]
    first = len(rows)
    rows += [[*names(mixer), *(cell(mixer, *column) for column in columns)] for mixer in scored]
    heads = [f"{SCORES[score]}, {domain}" for score, domain in columns]
    behind = frozenset({*range(first), *(place + first for place in aside(scored))})
    return Table("Right answers", ["Mixer", "F", *heads], rows, aside=behind)


def gap_table(found: Compared) -> Table:
    """What a mixer leaves of another's gap, where that was asked for."""
    pairs = {(parse(row.case).mixer, row.metric): None for row in found.rows if row.metric.startswith(GAP)}
    rows = []
    for mixer, metric in pairs:
        shares = [(found.value(mixer, each, metric), found.spread(mixer, each, metric)) for each in found.domains]
        rows.append([mixer, metric.removeprefix(GAP), *(with_error(*each) for each in shares)])
    return Table("Share left of another's log ratio", ["Mixer", "Other", *found.domains], rows, labels=2)


def goal_table(rows: Iterable[Row]) -> Table:
    lines = [
        [row.case, row.metric, row.goal, told_apart(row), {True: "kept", False: "missed", None: DASH}[kept(row)]]
        for row in rows
        if row.goal
    ]
    return Table(GOALS, ["Case", "Metric", "Goal", "Value", "It is"], lines, labels=5)


def origin_table(found: Compared) -> Table:
    """One line for each sweep; nothing when the sentence above the tables says it all."""
    rows = [row for mixer in found.mixers for row in found.rows_of(mixer) if row.command]
    commands = dict.fromkeys(row.command for row in rows if row.command)
    if len(commands) < 2:
        return Table("", [], [])
    by_origin: dict[tuple[str | None, str | None], list[Row]] = {}
    for row in rows:
        by_origin.setdefault((row.hardware, row.commit), []).append(row)
    lines = [
        [hardware or DASH, commits(together) or DASH, command]
        for (hardware, _), together in by_origin.items()
        for command in sweeps("mixer", dict.fromkeys(row.command for row in together if row.command))
    ]
    return Table("How each was made", ["Hardware", "Commit", "Command"], lines, labels=3)


def names(mixer: str) -> list[str]:
    """Its cells in a table: the words without F, with the role it plays, and F."""
    role = " (ceiling)" if is_ceiling(mixer) else " (control)" if is_control(mixer) else ""
    return [f"{family(mixer)}{role}", feature_dim(mixer) or DASH]


def aside(mixers: Iterable[str]) -> frozenset[int]:
    """The places of those that are only there to be compared with."""
    return frozenset(place for place, mixer in enumerate(mixers) if is_control(mixer) or is_ceiling(mixer))
