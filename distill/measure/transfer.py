"""Do kernels fitted on one domain work, frozen, on another? And is learning their frequencies worth it?"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, NamedTuple

import torch
from lightning import seed_everything

from ..data import Corpus
from ..kernels import save_kernels
from ..mixer import matches_maps
from ..names import MIXTURE, file_name
from ..stages.attention import AttentionStage
from ..stages.fit import fit
from ..student import build_student
from ..task import Batch, tokens_of
from .fidelity import head_fidelity
from .perplexity import read
from .subject import NotMeasured, Subject

#: The kernels as drawn, fitted to nothing.
FRESH = "fresh"
#: The kinds of kernel: all of it is fitted, or all but its frequencies, which stay at the draw.
KINDS = {"learned": False, "fixed": True}


class Found(NamedTuple):
    """Of one kernel on one text: KL and output error of its attention maps, mean over layers and heads, NaN where a
    mixer has none; perplexity of the teacher with it swapped in."""

    kl: float
    output_error: float
    ppl: float = torch.nan


@dataclass
class Fits:
    """A student to carry the kernels, whose weights stay the teacher's, and what they are fitted and held to."""

    subject: Subject
    carrier: Any
    fixable: bool
    tokens: int = 0

    def draw(self, seed: int, frozen: bool) -> None:
        """Kernels as drawn: the same ones for the same seed."""
        if self.fixable:
            self.carrier.config.mixer = self.carrier.config.mixer | {"frozen": frozen}
        seed_everything(seed, verbose=False)
        self.carrier.build_mixers()

    def fit(self, source: str, seed: int, frozen: bool) -> None:
        """Kernels fitted on one domain, or on the mixture, as stage 1 does, but always from the draw.

        With `stages.attention.place` frequencies that are learned would start from the domain's own keys, and those
        that are kept fixed would not: that alone is a third of the difference between them.
        """
        subject, config = self.subject, self.subject.config
        self.draw(seed, frozen)
        corpus = domain_alone(subject.corpus, source)
        wanted = replace(config.stages.attention, max_steps=config.measure.transfer.max_steps)
        name = "-".join(["transfer", file_name(source), *(["fixed"] if frozen else []), str(seed)])
        stage = AttentionStage(subject.teacher, self.carrier.mixers, wanted)
        self.tokens = fit(stage, name, wanted, corpus, replace(config, seed=seed), subject.run)

    def held_out(self, domain: str) -> Found:
        wanted = self.subject.config.measure
        batches = self.subject.held_out(domain, wanted.fidelity_blocks)
        blocks = self.subject.held_out(domain, wanted.transfer.blocks)
        ppl = read(self.carrier, blocks, self.subject.device, self.subject.task).perplexity
        return Found(*self.maps(batches), ppl)

    def trained_on(self, source: str, seed: int) -> Found:
        """Of the blocks that were fitted first, about as many as are held out."""
        wanted, size = self.subject.config.measure, self.subject.config.stages.attention.batch_size
        corpus = domain_alone(self.subject.corpus, source)
        seen = -(-wanted.fidelity_blocks // size)
        batches = islice(corpus.batches(max(seen, wanted.transfer.max_steps), size, seed), seen)
        return Found(*self.maps(batches))

    def maps(self, batches: Iterable[Batch]) -> tuple[float, float]:
        """KL and output error, mean over layers, heads and batches."""
        subject, found, weights = self.subject, [], []
        self.carrier.to(subject.device)
        subject.teacher.to(subject.device)
        for batch in batches:
            batch = {name: each.to(subject.device) for name, each in batch.items()}
            layers = subject.teacher.heads(batch)
            each = [head_fidelity(mixer, layers[layer]) for layer, mixer in self.carrier.mixers.items()]
            found.append(torch.stack([torch.stack([one.kl, one.output_error]).mean(1) for one in each]).mean(0).cpu())
            weights.append(tokens_of(batch))
        mean = (torch.stack(found) * torch.tensor(weights)[:, None]).sum(0) / sum(weights)
        return mean[0].item(), mean[1].item()


def domain_alone(corpus: Corpus, source: str) -> Corpus:
    """The corpus as if there were one domain to train on; whole for the mixture."""
    if source == MIXTURE:
        return corpus
    return replace(corpus, train={source: corpus.train[source]}, weights={source: 1.0})


def measure_transfer(subject: Subject) -> dict[str, Any]:
    """Fits kernels to every domain that is trained on, and to the mixture of all, each for as many steps, and holds
    each to every domain's held-out text; leaves them in kernels/.

    {"learned", "fixed": {measure: {source: {domain: [by seed]}}}, "fresh": {measure: {domain: [by seed]}},
    "train": {kind: {measure: {source: [by seed]}}} on text that was trained on; "fixed" null where a map has no
    frequencies; "comparable": whether its KL can be compared with other mixers'}
    """
    fits = start(subject)
    seeds = [subject.config.seed + i for i in range(subject.config.measure.transfer.seeds)]
    sources = [*subject.corpus.train, MIXTURE]
    kinds = [kind for kind in KINDS if kind == "learned" or fits.fixable]
    tables: dict[str, Any] = {kind: nested() for kind in kinds}
    seen: dict[str, Any] = {kind: nested() for kind in kinds}
    fresh: dict[str, Any] = nested()
    for seed in seeds:
        fits.draw(seed, False)
        with subject.run.timed("measure"):
            for domain in subject.domains:
                record(fresh, fits.held_out(domain), domain)
        for kind in kinds:
            for source in sources:
                fits.fit(source, seed, KINDS[kind])
                with subject.run.timed("measure"):
                    for domain in subject.domains:
                        record(tables[kind], fits.held_out(domain), source, domain)
                    record(seen[kind], fits.trained_on(source, seed), source)
                if kind == "learned" and seed == seeds[0]:
                    keep(fits.carrier, source, subject)
    return {
        "learned": tables["learned"],
        "fixed": tables.get("fixed"),
        "fresh": fresh,
        "train": {kind: seen.get(kind) for kind in KINDS},
        "sources": sources,
        "domains": subject.domains,
        "weights": subject.corpus.weights,
        "seeds": seeds,
        "steps": subject.config.measure.transfer.max_steps,
        "tokens": fits.tokens,
        "comparable": all(mixer.comparable for mixer in fits.carrier.mixers.values()),
    }


def start(subject: Subject) -> Fits:
    """NotMeasured where there are no kernels to fit to maps, or there is one domain alone."""
    if not matches_maps(subject.config.mixer):
        raise NotMeasured("with mixer.match_maps=false no kernel is fitted to attention maps")
    if not subject.student.mixers or not any(
        True for mixer in subject.student.mixers.values() for _ in mixer.parameters()
    ):
        raise NotMeasured("this mixer has nothing to fit")
    if len(subject.corpus.train) < 2:
        raise NotMeasured("there is one domain to train on: give data.domains two or more")
    carrier = build_student(subject.teacher, subject.config.mixer)
    carrier.config.layers = subject.student.config.layers
    mixers: list[Any] = list(carrier.mixers.values())
    fixable = not carrier.config.mixer.get("frozen", True) and all(mixer.map.frequencies for mixer in mixers)
    return Fits(subject, carrier, fixable)


def keep(carrier: Any, source: str, subject: Subject) -> None:
    """kernels/SOURCE.safetensors; the mixture's own is what the run's stage 1 left, and stays."""
    file = subject.run.folder("kernels") / f"{file_name(source)}.safetensors"
    if not file.exists():
        save_kernels(carrier, file)


def nested() -> dict[str, Any]:
    return {name: {} for name in Found._fields}


def record(table: dict[str, Any], found: Found, *place: str) -> None:
    """Adds each of the values to the list at its place."""
    for name, value in found._asdict().items():
        node = table[name]
        for key in place[:-1]:
            node = node.setdefault(key, {})
        node.setdefault(place[-1], []).append(value)
