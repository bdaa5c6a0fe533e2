"""What follows from kernels of several domains: what is kept of a fit elsewhere, and whether it was learned by heart.

Values are lists by seed.
"""

from typing import Any, TypeAlias

import numpy as np

from ..names import MIXTURE

#: Of every seed; None where there is none.
BySeed: TypeAlias = list[float | None]


def mean(by_seed: BySeed) -> float | None:
    """None where a seed has none: a mean over the others would hide that it failed."""
    known = [value for value in by_seed if value is not None]
    return sum(known) / len(known) if known and len(known) == len(by_seed) else None


def spread(by_seed: BySeed) -> float | None:
    """The sample standard deviation, of two at least."""
    known = [value for value in by_seed if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def retention(found: dict[str, Any], name: str) -> dict[str, dict[str, BySeed]]:
    """{source: {domain: [by seed]}}: what a kernel keeps, on every other domain that kernels were fitted on, of what
    fitting there gains: (fresh − frozen) / (fresh − fitted there); of perplexity, of its logarithm."""
    table, fresh = found["learned"][name], found["fresh"][name]
    return {
        source: {
            domain: [
                kept(*each, logarithm=name == "ppl")
                for each in zip(fresh[domain], table[source][domain], table[domain][domain], strict=True)
            ]
            for domain in found["domains"]
            if domain in table and domain != source
        }
        for source in found["sources"]
    }


def kept(fresh: float | None, frozen: float | None, fitted: float | None, logarithm: bool) -> float | None:
    """(fresh − frozen) / (fresh − fitted); None where fitting gains nothing."""
    if fresh is None or frozen is None or fitted is None:
        return None
    if logarithm:
        fresh, frozen, fitted = (float(np.log(each)) for each in (fresh, frozen, fitted))
    return (fresh - frozen) / (fresh - fitted) if fresh > fitted else None


def pairs(retained: dict[str, dict[str, BySeed]]) -> dict[tuple[str, str], BySeed]:
    """Those of two domains, the mixture being none."""
    return {
        (source, domain): by_seed
        for source, by_domain in retained.items()
        if source != MIXTURE
        for domain, by_seed in by_domain.items()
    }


def gap(found: dict[str, Any], kind: str, name: str) -> dict[str, dict[str, BySeed]]:
    """{source: {"train", "test": [by seed]}}: of text that was trained on, and of held-out text of the same domain; of
    the mixture the mean over its domains, by their weights."""
    table, train = found[kind][name], found["train"][kind][name]
    return {
        source: {"train": train[source], "test": table[source][source] if source != MIXTURE else mixed(found, table)}
        for source in found["sources"]
    }


def mixed(found: dict[str, Any], table: dict[str, Any]) -> BySeed:
    by_seed = zip(*(table[MIXTURE][domain] for domain in found["weights"]), strict=True)
    weights = list(found["weights"].values())
    return [
        None if None in each else sum(weight * value for weight, value in zip(weights, each, strict=True))
        for each in by_seed
    ]


def difference(each: dict[str, BySeed]) -> BySeed:
    """Test − train."""
    return [
        None if train is None or test is None else test - train
        for train, test in zip(each["train"], each["test"], strict=True)
    ]


def where_fitted(gaps: dict[str, dict[str, BySeed]], text: str) -> float | None:
    """On the text of a kernel's own domain that was trained on, or its held-out one ("train", "test"): mean over the
    kernels of one domain each."""
    return mean([mean(each[text]) for source, each in gaps.items() if source != MIXTURE])
