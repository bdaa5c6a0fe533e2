"""Steps as CUDA graphs compute what steps compute kernel after kernel, and stand back where they could not."""

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import SingleDeviceStrategy
from transformers import masking_utils

from distill import ranks
from distill.errors import UserError
from distill.flexformer import attempt
from distill.flexformer.attempt import KERNELS, LINEAR, PYTORCH, taken
from distill.remembered import Remembered
from distill.stages import graphs
from distill.stages.fit import STRATEGIES, graphed
from distill.stages.graphs import (
    BEFORE,
    GRAPH,
    ONE_BY_ONE,
    WHAT,
    Graph,
    Inputs,
    Loss,
    Steps,
    differentiated,
    one_text_a_row,
    waiting_refused,
)
from distill.stages.language import LanguageStage
from distill.stages.logits import LogitsStage
from distill.stages.stage import launches_alike

from .conftest import Compose, sized
from .test_nan import spoil_weight
from .test_stages import Run
from .test_teacher import ids

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


def tokens(length: int = 4) -> Inputs:
    return {"input_ids": torch.zeros(1, length, dtype=torch.long)}


class Fake:
    """Stands where a graph does, and counts."""

    made: list["Fake"]

    def __init__(self, compute: Any, inputs: Inputs, parameters: list[torch.Tensor], accumulates: bool):
        self.inputs, self.accumulates, self.computed = inputs, accumulates, 0
        self.made.append(self)

    def __call__(self, inputs: Inputs) -> Loss:
        self.computed += 1
        return Loss(torch.tensor(1.0), {})


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    monkeypatch.setattr(Fake, "made", [], raising=False)
    monkeypatch.setattr(graphs, "Graph", Fake)
    monkeypatch.setattr(graphs, "waiting_refused", nullcontext)
    monkeypatch.setattr(attempt, "_given_up", set())
    weight = torch.ones((), requires_grad=True)
    made = Steps(lambda inputs: Loss(0 * weight, {}), lambda: [weight])
    made.graphs = True
    taken.clear()
    return made


def totals(steps: Steps, *each: Inputs) -> list[float]:
    return [steps(inputs).total.item() for inputs in each]


def test_the_first_steps_come_one_kernel_after_the_other(steps: Steps):
    assert totals(steps, *[tokens()] * (BEFORE + 2)) == [0] * BEFORE + [1, 1]
    (graph,) = Fake.made
    assert graph.computed == 2 and taken == {WHAT: [ONE_BY_ONE, GRAPH]}
    steps.end()
    assert totals(steps, *[tokens()] * 9) == [0] * 9 and steps.graph is None


@pytest.mark.parametrize("more", [(), ("attention_mask",)])
def test_what_is_computed_before_a_graph_is_what_it_is_made_of(steps: Steps, more: tuple[str, ...]):
    """Or the compiler would make it anew, and waits for the GPU."""
    seen, before = [], masking_utils.find_packed_sequence_indices
    compute = steps.compute
    steps.compute = lambda inputs: seen.append(masking_utils.find_packed_sequence_indices) or compute(inputs)
    totals(steps, *[tokens() | {name: torch.ones(1, 4) for name in more}] * (BEFORE + 1))
    # A mask may hide what begins another text.
    assert set(seen) == {before if more else graphs.none_packed}
    # Once more for what is built, and once for what is captured.
    assert len(seen) == BEFORE + 2 and masking_utils.find_packed_sequence_indices is before


def test_all_kernels_are_built_before_the_first_step(steps: Steps, monkeypatch: pytest.MonkeyPatch):
    seen, chances, (weight,) = list[str](), list[float](), steps.parameters()

    @contextmanager
    def built() -> Iterator[list[BaseException]]:
        seen.append("building")
        yield []
        seen.append("built")

    def compute(inputs: Inputs) -> Loss:
        seen.append("computed")
        chances.append(torch.rand(()).item())
        loss = 2 * weight
        loss.register_hook(lambda _: seen.append("gone back"))
        return Loss(loss, {})

    monkeypatch.setattr(graphs, "built", built)
    steps.compute, steps.graphs = compute, False
    totals(steps, tokens())
    assert seen == ["computed"]
    steps.graphs = True
    totals(steps, tokens(4), tokens(5))
    assert seen[1:] == ["building", "computed", "gone back", "built", "computed", "computed"] and weight.grad is None
    # What was drawn before is drawn again.
    assert chances[1] == chances[2] != chances[3]


def test_what_goes_wrong_before_the_first_step_does_so_in_it(steps: Steps, monkeypatch: pytest.MonkeyPatch):
    def wrong(inputs: Inputs) -> Loss:
        tried.append(inputs)
        raise ValueError("of a step")

    tried = list[Inputs]()
    steps.compute = wrong
    with pytest.raises(ValueError, match="of a step"):
        steps(tokens())
    assert len(tried) == 2
    # But where others would be a step ahead.
    monkeypatch.setattr(ranks, "size", lambda: 2)
    several = Steps(wrong, steps.parameters)
    several.graphs = True
    with pytest.raises(ValueError, match="of a step"):
        several(tokens())
    assert len(tried) == 3


def test_what_there_was_no_memory_for_is_not_kept(steps: Steps):
    def wrong(inputs: Inputs) -> Loss:
        there.append(sum(each() is not None for each in made))
        x = torch.ones(3)
        made.append(weakref.ref(x))
        raise torch.OutOfMemoryError

    made, there = list[weakref.ref[torch.Tensor]](), list[int]()
    steps.compute = wrong
    gc.disable()
    try:
        with pytest.raises(torch.OutOfMemoryError):
            steps(tokens())
    finally:
        gc.enable()
    assert there == [0, 0]


def test_what_is_computed_from_nothing_is_no_anomaly(steps: Steps):
    compute, looked = steps.compute, list[bool]()
    steps.compute = lambda inputs: looked.append(torch.is_anomaly_enabled()) or compute(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.set_detect_anomaly(True):
            totals(steps, tokens())
    assert looked == [False, True]


@pytest.mark.parametrize("fails", [False, True])
def test_kernels_that_cannot_be_built_are_not_told_of(fails: bool, steps: Steps, monkeypatch: pytest.MonkeyPatch):
    ways = iter([KERNELS, PYTORCH])
    compute = steps.compute

    @contextmanager
    def built() -> Iterator[list[BaseException]]:
        yield [ValueError()] if fails else []

    def told(inputs: Inputs) -> Loss:
        attempt.tell(LINEAR, next(ways))
        return compute(inputs)

    monkeypatch.setattr(graphs, "built", built)
    steps.compute = told
    attempt.tell("before", KERNELS)
    totals(steps, tokens())
    found = [PYTORCH] if fails else [KERNELS, PYTORCH]
    assert taken == {"before": [KERNELS], LINEAR: found, WHAT: [ONE_BY_ONE]}


def test_inputs_of_other_shapes_have_no_graph(steps: Steps):
    # Never alike often enough.
    assert totals(steps, *[tokens(4), tokens(4), tokens(5)] * 3) == [0] * 9
    assert totals(steps, *[tokens(4)] * (BEFORE + 1)) == [0] * BEFORE + [1]
    assert totals(steps, tokens(5), tokens(4)) == [0, 1] and len(Fake.made) == 1


@pytest.mark.parametrize("more", ["attention_mask", "labels"])
def test_inputs_that_decide_over_shapes_have_no_graph(steps: Steps, more: str):
    assert totals(steps, *[tokens() | {more: torch.ones(1, 4)}] * 9) == [0] * 9


def test_what_makes_no_graph_goes_on_without(steps: Steps, monkeypatch: pytest.MonkeyPatch):
    def refused(*args: Any) -> Fake:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "Graph", refused)
    with pytest.warns(UserWarning, match="no CUDA graph: operation not permitted") as told:
        assert totals(steps, *[tokens()] * 9) == [0] * 9
    assert taken == {WHAT: [ONE_BY_ONE]} and len(told) == 1
    # Nor is it tried again; but in a stage that follows, which may have another size.
    monkeypatch.setattr(graphs, "Graph", Fake)
    assert totals(steps, *[tokens()] * 9) == [0] * 9
    follows = Steps(steps.compute, steps.parameters)
    follows.graphs = True
    assert totals(follows, *[tokens()] * 9)[-1] != 0


@pytest.mark.parametrize("told", ["Synchronization debug mode is a prototype feature", "something else"])
def test_what_waits_is_refused_inside_alone(told: str, monkeypatch: pytest.MonkeyPatch):
    """PyTorch says the first time what that may miss. Here warnings are errors, after which it is as before, too."""
    modes, known = [0], told.startswith("Sync")

    def set_mode(mode: str | int) -> None:
        modes.append(2 if mode == "error" else int(mode))
        if len(modes) == 2:
            warnings.warn(told, stacklevel=2)

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with pytest.raises(RuntimeError if known else UserWarning, match="waits" if known else told), waiting_refused():
        assert modes == [0, 2]
        raise RuntimeError("waits")
    assert modes == [0, 2, 0]


def test_gradients_are_taken_outside_of_autocast_and_lie_apart():
    one, other, third = (torch.randn(4, 4, requires_grad=True) for _ in range(3))
    unused = torch.zeros(3, requires_grad=True)

    def compute(inputs: Inputs) -> Loss:
        with torch.autocast("cpu", enabled=False):
            total = ((one + other) @ inputs["x"]).square().sum() + third.sum()
        return Loss(total, {"all": total.detach()})

    parameters, inputs = [one, other, third, unused], {"x": torch.randn(4, 4)}
    expected = torch.autograd.grad(compute(inputs).total, parameters, allow_unused=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, found = differentiated(compute, inputs, parameters)
    assert not loss.total.requires_grad and found[3] is None is expected[3]
    for mine, right in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-6)
    assert len({each.data_ptr() for each in found[:3]}) == 3 and found[2].is_contiguous()


class Replays:
    """Where no GPU is: a graph that computes nothing anew."""

    def replay(self) -> None:
        pass


@pytest.mark.parametrize("accumulates", [False, True])
def test_what_a_graph_hands_back(accumulates: bool, monkeypatch: pytest.MonkeyPatch):
    for name, stand_in in (("CUDAGraph", Replays), ("graph", nullcontext), ("current_stream", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    monkeypatch.setattr(torch.cuda, "graph", lambda *given, **named: nullcontext())
    weight, unused = torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)

    def compute(inputs: Inputs) -> Loss:
        total = (weight * inputs["x"]).square().sum()
        return Loss(total, {"all": total.detach()})

    inputs = {"x": torch.randn(4)}
    graph = Graph(compute, inputs, [weight, unused], accumulates)
    (expected,) = torch.autograd.grad(compute(inputs).total, [weight])
    first = graph({"x": torch.zeros(4)})
    assert torch.equal(graph.inputs["x"], torch.zeros(4)) and not torch.equal(inputs["x"], graph.inputs["x"])
    (2 * first.total).backward()
    torch.testing.assert_close(weight.grad, 2 * expected)
    # Not of noughts, and not even asked for: what averages gradients would make it some.
    assert unused.grad is None and graph.parameters == [weight]
    assert first.total == compute(inputs).total == first.parts["all"]
    assert (weight.grad.data_ptr() == graph.gradients[0].data_ptr()) is not accumulates
    if accumulates:
        graph(inputs).total.backward()
        torch.testing.assert_close(weight.grad, 3 * expected)
    old, _ = graph(inputs).total, graph(inputs)
    with pytest.raises(RuntimeError, match="are gone"):
        old.backward()


def test_layers_left_out_by_chance_are_not_captured():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert launches_alike(model)
    model.layerdrop = 0.1
    assert not launches_alike(model) and launches_alike(model.eval())


def test_rows_are_one_text_each():
    positions = torch.tensor([[0, 1, 0, 1]])
    before = masking_utils.find_packed_sequence_indices(positions)
    with one_text_a_row():
        assert masking_utils.find_packed_sequence_indices(positions) is None
    torch.testing.assert_close(masking_utils.find_packed_sequence_indices(positions), before)
    assert before is not None


def trainer(strategy: Any, **precision: Any) -> Any:
    return SimpleNamespace(strategy=strategy, precision_plugin=SimpleNamespace(**precision))


def test_graphs_are_for_gpus_with_all_weights_and_without_scaled_gradients():
    cuda = torch.device("cuda")
    assert graphed(trainer(SingleDeviceStrategy(cuda)))
    assert graphed(trainer(SingleDeviceStrategy(cuda), scaler=None))
    assert not graphed(trainer(SingleDeviceStrategy(cuda), scaler=torch.amp.GradScaler("cpu")))
    assert not graphed(trainer(SingleDeviceStrategy(torch.device("cpu"))))
    for strategy, whole in {"auto": True, "ddp": True, "fsdp": False}.items():
        several = STRATEGIES[strategy]()
        several.parallel_devices, several.cluster_environment = [cuda], LightningEnvironment()
        assert graphed(trainer(several)) == whole
        several.parallel_devices = [torch.device("cpu")]
        assert not graphed(trainer(several))


def test_what_the_processor_adds_leaves_shapes_as_they_are(small: Compose, teachers: dict[str, Path], tmp_path: Path):
    run, batch = Run(small("stages.attention.queries=3"), teachers["gpt2"]), {"input_ids": ids()}
    remembered = Remembered(run.teacher, tmp_path, 8, "32-true")
    logits = LogitsStage(run.teacher, run.student, run.config.stages.logits, remembered)
    assert logits.models() == [run.student]
    assert run.attention().inputs(batch).keys() == {"input_ids", "queries"}
    assert run.attention().inputs(batch).keys() | logits.inputs(batch).keys() == graphs.FIXED


@gpu
@pytest.mark.parametrize("accumulates", [False, True])
def test_a_graph_goes_back_to_its_parameters(accumulates: bool):
    weight, bias, unused = (torch.randn(8, 8, device="cuda", requires_grad=True) for _ in range(3))
    drawn = [torch.randint(8, (4,), device="cuda") for _ in range(3)]

    def compute(inputs: Inputs) -> Loss:
        loss = (weight[inputs["input_ids"]] @ bias).square().sum()
        return Loss(loss, {"all": loss.detach()})

    compute({"input_ids": drawn[0]}).total.backward()
    graph = Graph(compute, {"input_ids": drawn[0]}, [weight, unused, bias], accumulates)
    for each in drawn:
        weight.grad = bias.grad = None
        (compute({"input_ids": each}).total * 3).backward()
        expected = weight.grad.clone(), bias.grad.clone(), compute({"input_ids": each}).total
        weight.grad = bias.grad = None
        for _ in range(1 + accumulates):
            loss = graph({"input_ids": each})
            (loss.total * 3).backward()
        times = 1 + accumulates
        wanted = [expected[0] * times, expected[1] * times, *expected[2:] * 2]
        torch.testing.assert_close(
            [weight.grad, bias.grad, loss.total, loss.parts["all"]], wanted, rtol=1e-4, atol=1e-4
        )
        assert unused.grad is None
        with torch.no_grad():
            weight += 1
    old = graph({"input_ids": drawn[0]})
    graph({"input_ids": drawn[1]})
    with pytest.raises(RuntimeError, match="are gone"):
        old.total.backward()


#: What runs of every kind add to a configuration.
ON_GPU = ["trainer.accelerator=gpu", "trainer.devices=1"]
STEPS = BEFORE + 5
MANY = [f"stages.{stage}.max_steps={STEPS}" for stage in ("pretrain", "attention", "logits")]
FAST = ["stages.attention.learning_rate=3e-2", "stages.logits.learning_rate=2e-3"]
KINDS: dict[str, list[str]] = {
    "as it is": [],
    "a sample": ["stages.attention.queries=5"],
    "several to a step": ["trainer.accumulate_grad_batches=2"],
    "mixed precision": ["trainer.precision=bf16-mixed"],
    "with outputs and text": ["stages.attention.loss=both", "stages.logits.cross_entropy=0.5"],
}
#: With a window; with decay, which PyTorch computes; with the delta rule; with draws that are made anew on the way.
LEARNERS = [
    *product(("attention", "logits"), ("exponential-window", "exponential-decay", "stationary-delta")),
    ("logits", "favor-redrawn"),
]


def either(wanted: bool, path: Path) -> list[str]:
    return [f"cuda_graphs={wanted}", f"run_dir={path / str(wanted)}"]


@gpu
@pytest.mark.parametrize(("stage", "mixer"), LEARNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_stage_learns_the_same(
    stage: str, kind: str, mixer: str, small: Compose, teachers: dict[str, Path], tmp_path: Path
):
    losses = []
    for wanted in (True, False):
        redrawn = ["mixer.redraw_every=4"] if mixer == "favor-redrawn" else []
        overrides = [*sized(mixer), *redrawn, *ON_GPU, *MANY, *FAST, *KINDS[kind], *either(wanted, tmp_path)]
        run = Run(small(*overrides), teachers["gpt2"])
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="steps are taken")
            run.fit({"attention": run.attention, "logits": run.logits}[stage](), stage)
        assert (GRAPH in run.directory.ways[stage].get(WHAT, [])) is wanted
        losses.append(torch.tensor([line["loss"] for line in run.metrics()]))
    assert len(losses[0]) == STEPS and losses[0].unique().numel() == STEPS
    torch.testing.assert_close(*losses, rtol=3e-3, atol=0)


@gpu
def test_a_first_step_builds_no_kernel(small: Compose, teachers: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """All are there, of both stages; features of a number that no other test has."""
    from triton.runtime.jit import JITFunction

    make, names = JITFunction._do_compile, list[tuple[str, bool]]()

    def made(kernel: Any, *given: Any) -> Any:
        names.append((kernel.__name__, given[-1]))
        return make(kernel, *given)

    monkeypatch.setattr(JITFunction, "_do_compile", made)
    run = Run(
        small(*sized("exponential-window"), "mixer.features=41", "matmul_precision=medium", *ON_GPU, *MANY),
        teachers["gpt2"],
    )
    run.fit(run.attention(), "attention")
    run.fit(run.logits(), "logits")
    # Where it is not launched at once it was built beforehand.
    assert {"forward_kernel", "key_gradient_kernel"} <= {name for name, beforehand in names if beforehand}
    assert not [name for name, beforehand in names if not beforehand]


@gpu
def test_a_teacher_learns_the_same(small: Compose, teachers: dict[str, Path], tmp_path: Path):
    losses = []
    for wanted in (True, False):
        run = Run(small(*ON_GPU, *MANY, *either(wanted, tmp_path)), teachers["gpt2"])
        stage = LanguageStage(run.teacher.model, run.config.stages.pretrain)
        stage.model.eval()
        run.fit(stage, "pretrain")
        assert (GRAPH in run.directory.ways["pretrain"].get(WHAT, [])) is wanted
        losses.append(torch.tensor([line["loss"] for line in run.metrics()]))
    torch.testing.assert_close(*losses, rtol=3e-3, atol=0)


def waiting(layer_loss: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def found(*given: Any) -> torch.Tensor:
        loss = layer_loss(*given)
        assert loss.item() > -1
        return loss

    return found


@pytest.fixture(autouse=True)
def hopeful(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test gives up is no loss of others."""
    monkeypatch.setattr(attempt, "_given_up", set())


@gpu
def test_steps_that_wait_for_the_gpu_go_on_without(
    small: Compose, teachers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    losses = []
    for wanted in (True, False):
        run = Run(small(*ON_GPU, *MANY, *either(wanted, tmp_path)), teachers["gpt2"])
        stage = run.attention()
        monkeypatch.setattr(stage, "layer_loss", waiting(stage.layer_loss))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            run.fit(stage, "attention")
        assert any("make no CUDA graph: called a synchronizing" in str(each.message) for each in told) is wanted
        losses.append(torch.tensor([line["loss"] for line in run.metrics()]))
    assert len(losses[0]) == STEPS
    torch.testing.assert_close(*losses, rtol=3e-3, atol=0)


@gpu
def test_a_weight_that_is_not_a_number_is_named(small: Compose, teachers: dict[str, Path]):
    run = Run(small(*ON_GPU, *MANY), teachers["gpt2"])
    stage = run.attention()
    parameter = next(run.student.mixers[1].parameters())
    stage.on_train_batch_start = lambda batch, index: spoil_weight(parameter) if index == STEPS - 2 else None
    with pytest.raises(UserError, match=rf"^stage attention, step {STEPS - 1}: .*(layer 1|mixers\.1\.)"):
        run.fit(stage, "attention")
    assert GRAPH in taken[WHAT]
