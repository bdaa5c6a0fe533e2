"""What the words of a report mean: every claim leads to the definition of its numbers."""

import re

from markupsafe import Markup, escape

#: Every term and what it is, in the order of the page.
TERMS = {
    "perplexity": "exp of the mean −log p of the targets, of held-out text: the next token of a decoder, a masked one "
    "of an encoder, the label of a text.",
    "ratio": "The student's perplexity over its teacher's, on the same text at the same context: 1.00× loses nothing.",
    "swapped in": "The teacher with the mixers in the place of softmax, and nothing else changed.",
    "KL": "KL(P‖A) = Σ P log(P/A) in nats. Of attention: P are the teacher's weights and A the student's, mean over "
    "queries, heads and layers. To the teacher: of the two's predictions, mean over targets. 0 where they agree.",
    "output error": "‖PV − AV‖² / ‖PV‖²: how far what a head passes on is from what the teacher's does, as a share.",
    "same first choice": "The share of targets for which student and teacher find the same token likeliest.",
    "accuracy": "The share of texts whose label, or whose partner, is found; recovery is the student's over the "
    "teacher's.",
    "state": "What decoding one sequence keeps of all tokens before, in bytes; of a linear layer the same at any "
    "length.",
    "untrained": "Kernels as they were drawn, fitted to nothing.",
    "retention": "Of kernels fitted on one domain and used, frozen, on another: (untrained − frozen) / "
    "(untrained − fitted there).",
    "gap": "Held-out text minus text that was trained on: what is above 0 was learned by heart.",
    "contribution": "What is lost when something less stands in the place of attention: nats per target, or e to that "
    "power, as a multiple of the student's perplexity.",
    "recall": "The share of tokens, of those that stood in the text before, that are found as the likeliest; what is "
    "gained is their log p minus that after other tokens, of which nothing can be recalled.",
    "crossover": "The shortest length measured from which on the student needs less than its teacher.",
}
#: What means a term without being called it.
WORDS = {
    "kernels keep": "retention",
    "without attention": "contribution",
    "without the linear part": "contribution",
    "without the window part": "contribution",
    "of a copy": "recall",
    "of a passkey": "recall",
    "from a copy": "recall",
    "from a passkey": "recall",
    "needs less": "crossover",
}


class Linker:
    """Makes claims lead to definitions, and knows which of these a page needs."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def linked(self, text: str) -> Markup:
        """Escaped, the first occurrence of every term a link to its definition."""
        names = {name.lower(): name for name in TERMS} | WORDS
        seen: set[str] = set()

        def link(found: re.Match[str]) -> str:
            term = names[found[0].lower()]
            if term in seen:
                return found[0]
            seen.add(term)
            return f'<a class="term" href="#{anchor(term)}">{found[0]}</a>'

        pattern = "|".join(rf"\b{re.escape(name)}\b" for name in sorted(names, key=len, reverse=True))
        made = Markup(re.sub(pattern, link, str(escape(text)), flags=re.IGNORECASE))
        self.used |= seen
        return made

    def definitions(self) -> list[tuple[str, str, str]]:
        """Anchor, term and definition of every one that something led to."""
        return [(anchor(term), term, told) for term, told in TERMS.items() if term in self.used]


def anchor(term: str) -> str:
    """The id of its definition."""
    return "term-" + re.sub(r"[^a-z]+", "-", term.lower())
