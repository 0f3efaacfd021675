import io

import pytest
from rich.console import Console

from training.display import Display
from training.events import EndEvent, EvaluationEvent, Event, StepEvent
from training.overfitting import OverfittingWatch


def step(number: int, loss: float) -> StepEvent:
    return StepEvent(
        step=number, tokens=100 * number, elapsed_s=number, progress=number / 100, loss=loss, grad_norm=1.0
    )


def evaluation(number: int, loss: float, *, is_best: bool, temperature: float = 1.0) -> EvaluationEvent:
    return EvaluationEvent(
        step=number,
        tokens=100 * number,
        elapsed_s=number,
        loss=loss,
        raw_loss=loss + 0.02 * (temperature != 1.0),
        temperature=temperature,
        nats_per_char=loss,
        bits_per_byte=loss,
        random_estimate=None,
        is_best=is_best,
        text="",
    )


def overfitting(falling: bool) -> list[Event]:
    """A run whose validation is best at step 10, while training goes on falling or does not."""
    events: list[Event] = []
    for number in range(1, 41):
        events.append(step(number, 2.0 - 0.04 * number if falling else 2.0))
        if number % 10 == 0:
            events.append(evaluation(number, 1.5 + number / 1000, is_best=number == 10))
    return events


END = EndEvent(
    step=40,
    tokens=4_000_000,
    elapsed_s=100.0,
    ending="budget",
    data_s=0.5,
    evaluation_s=4.0,
    flops=4e13,
    peak_memory_bytes=800_000_000,
)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_overfitting_is_said_with_its_step_and_the_checkpoint_that_is_kept(is_terminal: bool) -> None:
    out = io.StringIO()
    with Display(Console(file=out, force_terminal=is_terminal, width=200, color_system=None)) as display:
        for event in overfitting(falling=True):
            display.show(event)
    assert "overfitting since step 20: the best checkpoint (step 10) is kept" in out.getvalue()


def test_the_end_tells_speed_memory_and_where_the_time_went() -> None:
    out = io.StringIO()
    with Display(Console(file=out, width=200)) as display:
        display.show(evaluation(40, 1.5, is_best=True, temperature=1.25))
        display.show(END)
    said = out.getvalue()
    assert "validation 1.5000  (1.5200 / temperature 1.250)  best so far" in said
    assert "4.00M tokens in 1m40s: 4e+13 FLOPs, 400 GFLOP/s, 800 MB at most" in said
    assert "4.0 % of the time evaluating, 0.5 % waiting for data" in said


def watch(events: list[Event]) -> OverfittingWatch:
    seen = OverfittingWatch()
    for event in events:
        if isinstance(event, StepEvent):
            seen.step(event)
        elif isinstance(event, EvaluationEvent):
            seen.evaluation(event)
    return seen


def test_neither_one_worse_evaluation_nor_a_flat_loss_is_overfitting() -> None:
    events = overfitting(falling=True)
    assert watch(events[:22]).since is None
    assert watch(events[:33]).since == 20
    assert watch([*events, evaluation(50, 1.2, is_best=True)]).since is None
    assert watch(overfitting(falling=False)).since is None
