"""The sections of one teacher."""

from ...names import file_name
from ..section import Section
from ..verdict import KL_TO_TEACHER
from .compared import Compared
from .quality import quality_figure
from .tables import beside_table, gap_table, goal_table, origin_table, quality_table, score_table
from .words import beaten, setting, verdict

#: What the column means.
STATE = "State is what decoding one sequence keeps, at this context where it grows. "
ORDER = "The rows are in the order of the mean log ratio."
SCORED = (
    "The rows are in the order of the mean accuracy. A ratio also tells how sure a model is of its answers, and is "
    "below 1 where the teacher is too sure of its own: that is no merit."
)
SHARE = " A share left is one log ratio over another: 0 is as good as the teacher, 1 no better than the other mixer."


def sections(found: Compared) -> dict[str, Section]:
    """By name: the comparison itself, and what is known beside it."""
    name = file_name(found.teacher)
    shares = gap_table(found)
    detail = [shares, beside_table(found), goal_table(found.rows), origin_table(found)]
    comparison = Section(
        title=found.teacher,
        intro=f"{setting(found)} The ratio is student over teacher perplexity, same text and context, so 1 loses "
        "nothing; ± is the sample standard deviation over seeds. Stage 1 is the ratio after that stage alone, which "
        "mixers that have nothing to fit to maps go without. KL is that of its attention maps in nats, mean over "
        f"layers and heads. {STATE if found.decodes else ''}{SCORED if found.scored else ORDER}",
        data={},
        verdict=verdict(found),
        tables=[table for table in (score_table(found), quality_table(found)) if table.rows],
        # Where answers are right or wrong, the tables say it, and a picture of perplexities would mislead.
        figures=[] if found.scored else [[quality_figure(found, domain)] for domain in found.domains],
        notes=beaten(found),
    )
    beside = Section(
        title=f"{found.teacher}, beside it",
        intro="Output error is that of attention after stage 1, as a share of the teacher's output; same first choice, "
        "the tokens that student and teacher both find likeliest; teacher tuned, the ratio of the teacher trained on "
        f"the tokens of stage 2.{KL_TO_TEACHER if found.known('kl') else ''}{SHARE if shares.rows else ''}",
        data={},
        tables=[table for table in detail if table.rows],
    )
    return {name: comparison} | ({f"{name}-beside": beside} if beside.tables else {})
