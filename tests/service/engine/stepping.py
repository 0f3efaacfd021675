"""Engines stepped until they have no work, and what they made of each request."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from service.engine.engine import Engine
from service.engine.interface import StepOutput
from service.protocol import Claim, End, TokenLogprobs


@dataclass
class Made:
    """What an engine made of one request."""

    outputs: list[StepOutput] = field(default_factory=list)
    """Of each step in which it made something."""

    @property
    def token_ids(self) -> list[int]:
        """All of its tokens."""
        return [token_id for output in self.outputs for token_id in output.token_ids]

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """What was told of them."""
        return [entry for output in self.outputs for entry in output.logprobs]

    @property
    def end(self) -> End:
        """How it ended."""
        [end] = [output.end for output in self.outputs if output.end is not None]
        return end


def run(
    engine: Engine,
    *claims: Claim,
    made_before: Iterable[StepOutput] = (),
    after_step: Callable[[], object] = lambda: None,
) -> dict[str, Made]:
    """Add `claims` to an engine and step it until it has no work; return what it made of each request.

    Args:
        engine: What computes, with whatever it has to do already.
        claims: What it is given besides.
        made_before: What its steps have made before this.
        after_step: Called after each step.
    """
    made: dict[str, Made] = {}
    for output in made_before:
        made.setdefault(output.id, Made()).outputs.append(output)
    for claim in claims:
        engine.add(claim)
    while engine.has_work:
        for output in engine.step():
            made.setdefault(output.id, Made()).outputs.append(output)
        after_step()
    return made


def finish(engine: Engine, *claims: Claim) -> dict[str, list[int]]:
    """Do the same; return the tokens of each request."""
    return {id_: made.token_ids for id_, made in run(engine, *claims).items()}
