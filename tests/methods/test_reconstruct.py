"""Learning block by block: outputs come closer to float, what does not help is undone, and the plan holds it all."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import lowbit
from lowbit.graph import clean, load_model, serialize
from lowbit.methods.apply import apply_plan
from lowbit.methods.calibrate import calibrate, observed_shapes
from lowbit.methods.decide import decide, make_plan, watch_list
from lowbit.methods.reconstruct import Schedules, reconstruct
from lowbit.plan.recipe import Recipe
from lowbit.plan.sites import find_sites
from lowbit.reconstruction.learning import BlockLearner, Schedule
from lowbit.runtime.session import open_session
from lowbit.targets import find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import onnx

    from lowbit.plan.plan import Plan

TARGET = find_target("onnxruntime-x86-vnni")
NET = """g (float[1,3,12,12] x, float[16,3,3,3] w1, float[16] b1, float[16,1,3,3] w2, float[16] b2, float[8,16,1,1] w3,
           float[8] b3, float[8,8,3,3] w4, float[8] b4, float[8,10] w5, float[10] b5) => (float[1,10] y) {
    c = Conv<pads=[1,1,1,1]>(x, w1, b1)
    r = Relu(c)
    d = Conv<group=16, pads=[1,1,1,1]>(r, w2, b2)
    s = Relu(d)
    e = Conv(s, w3, b3)
    f = Conv<pads=[1,1,1,1]>(e, w4, b4)
    a = Add(e, f)
    t = Relu(a)
    p = GlobalAveragePool(t)
    one = Constant<value_ints=[1, 8]>()
    q = Reshape(p, one)
    m = MatMul(q, w5)
    y = Add(m, b5)
}"""
# Two layers whose inputs have much in common, so that errors of roundings add up or cancel.
DENSE = """g (float[16,24] x, float[24,32] w1, float[32] b1, float[32,10] w2, float[10] b2) => (float[16,10] y) {
    m = MatMul(x, w1)
    a = Add(m, b1)
    r = Relu(a)
    n = MatMul(r, w2)
    y = Add(n, b2)
}"""
SHORT = Schedules(blocks=Schedule(steps=60), whole=Schedule(steps=60, dropped=0.0))


@pytest.fixture
def planned(parse: Callable, noise: Callable) -> Callable[..., tuple[onnx.ModelProto, Any, Plan, list]]:
    def call(net: str = NET, **options: Any) -> tuple[onnx.ModelProto, Any, Plan, list]:
        proto = parse(net)
        feeds = noise(proto, count=24)
        if net.startswith(DENSE[:40]):
            feeds = [common(feed) for feed in feeds]
        model = clean(load_model(proto)).model
        sites = find_sites(model, TARGET)
        recipe = Recipe(
            target=TARGET.name, **{"weights": "int3", "activations": "uint8", "rounding": "nearest"} | options
        )
        shapes = observed_shapes(model, feeds[0])
        decision = decide(sites, recipe, TARGET, shapes)
        found = calibrate(model, feeds, watch_list(sites, decision, recipe))
        return proto, model, make_plan(model, sites, recipe, TARGET, decision, found, shapes), feeds

    return call


def common(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return samples whose values rise and fall together."""
    return {"x": feed["x"] + 2 * feed["x"][:, :1]}


def noise_of(proto: onnx.ModelProto, artifact: bytes, feeds: list) -> float:
    """Return the squared error of the engine's output over its square."""
    exact, real = open_session(proto.SerializeToString(), threads=1), open_session(artifact, threads=1)
    pairs = [(exact.run(feed)[0].astype(float), real.run(feed)[0].astype(float)) for feed in feeds]
    return sum(np.square(got - want).sum() for want, got in pairs) / sum(np.square(want).sum() for want, _ in pairs)


def test_outputs_come_closer_in_the_engine(planned: Callable, noise: Callable) -> None:
    proto, model, plan, feeds = planned()
    found = reconstruct(model, plan, TARGET, feeds, schedules=SHORT)
    assert found.blocks
    assert all(block.after <= block.before for block in found.blocks.values())
    applied = apply_plan(model, found.plan, target=TARGET)
    fresh = noise(proto, count=40)[24:]
    before = noise_of(proto, serialize(apply_plan(model, plan, target=TARGET).model), fresh)
    after = noise_of(proto, serialize(applied.model), fresh)
    assert after < 0.7 * before
    # What was learned is what was applied: no rounding that does not fit, the first layer's channels of zeros included.
    assert not any("does not fit" in note for site in applied.plan.sites for note in site.notes)
    assert any(site.scale for site in found.plan.sites)
    assert any(site.bias for site in found.plan.sites)


def test_the_same_seed_learns_the_same(planned: Callable) -> None:
    _, model, plan, feeds = planned()
    quick = Schedules(blocks=Schedule(steps=8))
    state = torch.get_rng_state()
    first, second, other = (
        reconstruct(model, plan, TARGET, feeds, schedules=quick, seed=seed).plan for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other
    assert torch.equal(torch.get_rng_state(), state)
    assert serialize(apply_plan(model, first, target=TARGET).model) == serialize(
        apply_plan(model, second, target=TARGET).model
    )


def test_what_does_not_help_is_undone(planned: Callable) -> None:
    _, model, plan, feeds = planned()
    # Biases that leap about by a hundred times their size make every block worse.
    wild = Schedules(blocks=Schedule(steps=3, bias_rate=100.0, scale_rate=5.0, judged=1))
    found = reconstruct(model, plan, TARGET, feeds, schedules=wild)
    assert all(block.after <= block.before for block in found.blocks.values())
    assert serialize(apply_plan(model, found.plan, target=TARGET).model) == serialize(
        apply_plan(model, plan, target=TARGET).model
    )


def test_adaround_is_better_than_nearest(planned: Callable, noise: Callable) -> None:
    proto, model, plan, feeds = planned(DENSE)
    found = reconstruct(model, plan, TARGET, feeds, kind="adaround")
    # Every layer is a block of its own, and the plan's codes, rounded to nearest, are what each is compared with.
    assert len(found.blocks) == 2
    assert all(block.after < 0.7 * block.before for block in found.blocks.values())
    applied = apply_plan(model, found.plan, target=TARGET)
    assert not any("does not fit" in note for site in applied.plan.sites for note in site.notes)
    fresh = [common(feed) for feed in noise(proto, count=40)[24:]]
    before = noise_of(proto, serialize(apply_plan(model, plan, target=TARGET).model), fresh)
    assert noise_of(proto, serialize(applied.model), fresh) < 0.7 * before


def test_adaround_that_does_not_help_is_undone(planned: Callable) -> None:
    _, model, plan, feeds = planned()
    # One leap takes most weights to the farther code.
    wild = Schedules(blocks=Schedule(steps=1, reach=1000.0, scale_rate=0.0, bias_rate=0.0, judged=1))
    found = reconstruct(model, plan, TARGET, feeds, kind="adaround", schedules=wild)
    assert all(block.after <= block.before for block in found.blocks.values())
    undone = [name for name, block in found.blocks.items() if not block.helped]
    assert undone
    assert sum("learned by AdaRound" in note for site in found.plan.sites for note in site.notes) == len(
        found.blocks
    ) - len(undone)


def _stop_after(count: int) -> Callable[[], None]:
    left = iter(range(count))

    def advance() -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return advance


@pytest.mark.parametrize("kind", ["learned", "adaround"])
def test_an_interrupted_run_continues_to_the_same_bytes(
    planned: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    _, model, plan, feeds = planned()
    quick = Schedules(blocks=Schedule(steps=12), whole=Schedule(steps=12, dropped=0.0))
    options: dict[str, Any] = {"kind": kind, "schedules": quick}
    learned: list[int] = []
    learn = BlockLearner.learn

    def counted(*arguments: Any, **named: Any) -> float:
        learned.append(1)
        return learn(*arguments, **named)

    monkeypatch.setattr(BlockLearner, "learn", counted)
    whole = reconstruct(model, plan, TARGET, feeds, **options)
    blocks = len(learned)
    for stop in (0, blocks - 1):
        folder = tmp_path / str(stop)
        learned.clear()
        with pytest.raises(KeyboardInterrupt):
            reconstruct(model, plan, TARGET, feeds, checkpoint=folder, advance=_stop_after(stop), **options)
        first = len(learned)
        continued = reconstruct(model, plan, TARGET, feeds, checkpoint=folder, **options)
        assert 0 < first == stop + 1
        assert len(learned) == blocks
        assert continued.blocks == whole.blocks
        assert continued.plan == whole.plan
        assert serialize(apply_plan(model, continued.plan, target=TARGET).model) == serialize(
            apply_plan(model, whole.plan, target=TARGET).model
        )


def test_a_checkpoint_of_something_else_is_refused(planned: Callable, tmp_path: Path) -> None:
    _, model, plan, feeds = planned()
    quick = Schedules(blocks=Schedule(steps=2))
    reconstruct(model, plan, TARGET, feeds, schedules=quick, checkpoint=tmp_path / "blocks")
    others: list[dict[str, Any]] = [
        {"seed": 1},
        {"feeds": feeds[1:]},
        {"schedules": Schedules(blocks=Schedule(steps=3))},
        {"plan": dataclasses.replace(plan, warnings=("another",))},
    ]
    for other in others:
        named = {"plan": plan, "feeds": feeds, "schedules": quick} | other
        with pytest.raises(lowbit.LowbitError, match="belongs to other learning"):
            reconstruct(model, named.pop("plan"), TARGET, named.pop("feeds"), checkpoint=tmp_path / "blocks", **named)
    first = min((tmp_path / "blocks").iterdir())
    first.write_bytes(first.read_bytes()[:200])
    with pytest.raises(lowbit.LowbitError, match=r"cannot be read[\s\S]*delete the folder"):
        reconstruct(model, plan, TARGET, feeds, schedules=quick, checkpoint=tmp_path / "blocks")


def test_quantize_continues_learning_and_cleans_up(
    parse: Callable, noise: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = Schedules(blocks=Schedule(steps=5))
    monkeypatch.setattr("lowbit.methods.reconstruct.usual_schedules", lambda *_: quick)
    proto = parse(NET)
    options: dict[str, Any] = {
        "target": "host",
        "weights": "int4",
        "activations": "uint8",
        "rounding": "learned",
        "measure_seconds": 0.0,
        "checkpoint": tmp_path / "state.npz",
    }
    feeds = noise(proto, count=10)

    @contextmanager
    def stopping(title: str, steps: int | None) -> Iterator[Callable[[], None]]:
        del steps
        yield _stop_after(1) if title == "Learn block by block" else lambda: None

    with pytest.raises(KeyboardInterrupt):
        lowbit.quantize(proto, feeds, stages=stopping, **options)
    assert len(list((tmp_path / "state.npz.learned").glob("block-*.npz"))) == 2
    continued = lowbit.quantize(proto, feeds, **options)
    assert list(tmp_path.iterdir()) == []
    whole = lowbit.quantize(proto, feeds, **options)
    assert serialize(continued.model) == serialize(whole.model)


@pytest.mark.parametrize("kind", ["learned", "adaround"])
def test_what_a_softmax_reads_is_what_is_judged(planned: Callable, kind: Any) -> None:
    _, model, plan, feeds = planned(DENSE)
    squeezed = DENSE.replace("y = Add(n, b2)", "z = Add(n, b2) y = Softmax(z)")
    _, other, same, _ = planned(squeezed)
    quick = Schedules(blocks=Schedule(steps=5, dropped=0.0))
    plain, soft = (
        reconstruct(one, each, TARGET, feeds, kind=kind, schedules=quick).blocks
        for one, each in ((model, plan), (other, same))
    )
    assert [block.before for block in soft.values()] == pytest.approx(
        [block.before for block in plain.values()], rel=0.1
    )


def test_stored_weights_learn_too(planned: Callable, noise: Callable) -> None:
    proto, model, plan, feeds = planned(weights="int3:per-channel", activations="none", optimize="size")
    assert {site.execution for site in plan.sites if site.weights} == {"weight-only"}
    found = reconstruct(model, plan, TARGET, feeds, schedules=SHORT)
    fresh = noise(proto, count=40)[24:]
    before, after = (
        noise_of(proto, serialize(apply_plan(model, each, target=TARGET).model), fresh) for each in (plan, found.plan)
    )
    assert after < before


def test_a_time_that_is_short_is_kept(planned: Callable) -> None:
    _, model, plan, feeds = planned()
    found = reconstruct(model, plan, TARGET, feeds, seconds=0.5)
    assert found.seconds < 10
    assert all(block.steps < 200 for block in found.blocks.values())


def test_a_plan_with_a_foreign_scale_is_refused(planned: Callable) -> None:
    _, model, plan, feeds = planned()
    found = reconstruct(model, plan, TARGET, feeds, schedules=Schedules(blocks=Schedule(steps=20))).plan
    learned = [site for site in found.sites if site.scale]
    assert learned
    broken = dataclasses.replace(
        found,
        sites=tuple(
            dataclasses.replace(site, scale=learned[0].scale[:8]) if site is learned[0] else site
            for site in found.sites
        ),
    )
    with pytest.raises(lowbit.LowbitError, match=r"weight scales|unreadable array"):
        apply_plan(model, broken, target=TARGET)


def test_nothing_is_learned_from_random_numbers(parse: Callable) -> None:
    result = lowbit.quantize(
        parse(NET),
        "random",
        target="host",
        weights="int4",
        activations="uint8",
        rounding="learned",
        measure_seconds=0.0,
    )
    assert any("nothing was learned" in warning for warning in result.warnings + result.plan.warnings)
    assert not any(site.scale or site.bias for site in result.plan.sites)


def test_best_learns_and_its_plan_gives_the_same_bytes(parse: Callable, noise: Callable, tmp_path: Any) -> None:
    proto = parse(NET)
    feeds = noise(proto, count=30)
    options: dict[str, Any] = {"target": "host", "weights": "int4", "activations": "uint8", "measure_seconds": 0.0}
    plain = lowbit.quantize(proto, feeds, **options)
    best = lowbit.quantize(proto, feeds, method="best", time=20.0, **options)
    assert best.verification.unfused == ()
    assert best.verification.outputs[0].sqnr_real_db > plain.verification.outputs[0].sqnr_real_db
    assert any("learned" in note for site in best.plan.sites for note in site.notes)
    best.save_plan(tmp_path / "plan.yaml")
    again = lowbit.quantize(proto, None, test_data=feeds[:2], plan=tmp_path / "plan.yaml", measure_seconds=0.0)
    assert serialize(again.model) == serialize(best.model)
