"""What the numbers of the headline say, in sentences."""

from typing import Any

from .quantities import share, size, times

#: What is said of the KL between predictions where it was measured.
KL_TO_TEACHER = (
    " KL to teacher runs from what the teacher predicts to what the student, or the tuned teacher, does, in nats per "
    "token, or per text where a text has one answer: 0 when they agree. Knowing the text better lowers the ratio, too; "
    "only agreeing with the teacher lowers this."
)


def verdict(data: dict[str, Any]) -> str:
    """Quality, diverged domains, the control and memory: a sentence for each that there are numbers for."""
    return " ".join(filter(None, [_right(data), _quality(data), _lost(data), _control(data), _memory(data)]))


def _quality(data: dict[str, Any]) -> str:
    ratios = _known(data["ratio"])
    if not ratios:
        return ""
    if len(ratios) > 3:
        low, high = min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__)
        span = f"between {times(ratios[low])} ({low}) and {times(ratios[high])} ({high}) the teacher's"
        return f"Perplexity is {span}, over {len(ratios)} domains."
    told = each(ratios, of=" the teacher's")
    return f"Perplexity is {told}{_level(ratios, data['ratio_error'])}."


def _right(data: dict[str, Any]) -> str:
    """What is kept of the teacher's accuracy, where a text has a right answer, and whether that is more than chance."""
    found = {domain: scores["accuracy"] for domain, scores in (data["scores"] or {}).items()}
    if not found:
        return ""
    told = [f"{share(each['recovery'])} on {domain}" for domain, each in found.items()]
    gaps = {domain: abs(each["student"] - each["teacher"]) for domain, each in found.items()}
    level = [domain for domain, gap in gaps.items() if found[domain]["error"] and gap <= 2 * found[domain]["error"]]
    alike = f"; on {listed(level)} the two are level within two standard errors" if level else ""
    idle = [domain for domain, each in found.items() if each["teacher"] <= each["constant"]]
    kept = f"The student keeps {listed(told)} of its teacher's accuracy{alike}."
    cosines = {domain: scores["cosine"]["student"] for domain, scores in data["scores"].items() if "cosine" in scores}
    near = [f"{share(cosine)} on {domain}" for domain, cosine in cosines.items()]
    kept += f" Its embeddings' cosine to the teacher's is {listed(near)}." if near else ""
    return f"{kept} On {listed(idle)} the teacher is no better than one answer to all." if idle else kept


def _level(ratios: dict[str, float], errors: dict[str, float | None]) -> str:
    """Domains where the difference cannot be told from chance."""
    names = [name for name, error in _known(errors).items() if name in ratios and abs(ratios[name] - 1) <= 2 * error]
    return f"; on {listed(names)} the two are level within two standard errors" if names else ""


def _lost(data: dict[str, Any]) -> str:
    """A student that diverged must not vanish from the verdict."""
    names = [domain for domain, ratio in data["ratio"].items() if ratio is None]
    return f"On {listed(names)} it has no finite ratio." if names else ""


def _control(data: dict[str, Any]) -> str:
    ratios = _known(data["student_over_tuned"])
    return f"Against the teacher trained on the same tokens it is {each(ratios)}." if ratios else ""


def _memory(data: dict[str, Any]) -> str:
    tokens, context = data["state_smaller_from_tokens"], data["context"]
    if tokens is None:
        return ""
    beyond = f", which is beyond the {context:,} measured here" if tokens > context else ""
    state, grows = f"The decoding state stays at {size(data['state_bytes'])}", data["student_cache_bytes_per_token"]
    kept = f", beside {size(grows)} a token for the layers kept exact" if grows else ""
    return f"{state}{kept}; the teacher's cache is larger from {tokens:,} tokens on{beyond}."


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in values.items() if value is not None}


def each(ratios: dict[str, float], of: str = "") -> str:
    """`of`, what the ratios are multiples of, is said once."""
    first, *rest = ratios.items()
    return listed([f"{times(first[1])}{of} on {first[0]}", *(f"{times(ratio)} on {domain}" for domain, ratio in rest)])


def listed(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"
