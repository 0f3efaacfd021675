"""Log-probabilities are those of the model's own logits, told once and beside their tokens, however the work is cut."""

from collections.abc import Callable

import pytest
import torch

from service.engine.engine import Engine
from service.protocol import Claim, TokenLogprobs
from tests.service.engine.stepping import run
from training.models.gpt import GPT
from training.objectives import cross_entropy
from training.tokenizers.char import CharTokenizer

PROMPTS = [[1], [5, 3, 8, 2, 11], list(range(20)), [9] * 37]
STRANGERS = [[4, 4, 4], list(range(30, 2, -1)), [7, 1] * 11]
BENT = {"temperature": 0.7, "top_k": 4, "repetition_penalty": 1.5, "presence_penalty": 1.0, "logit_bias": {3: 4.0}}

MakeEngine = Callable[..., Engine]
MakeClaim = Callable[..., Claim]


@torch.inference_mode()
def expected(model: GPT, token_ids: list[int]) -> torch.Tensor:
    """The log-probabilities of what follows each token, `(T, V)`."""
    return model(torch.tensor([token_ids]))[0].double().log_softmax(-1)


def check(told: list[TokenLogprobs], token_ids: list[int], rows: torch.Tensor, count: int) -> None:
    assert [entry.token_id for entry in told] == token_ids
    for entry, row in zip(told, rows, strict=True):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx(row.topk(count).values.tolist(), abs=1e-4)
        assert [value for _, value in entry.top] == pytest.approx([row[id_].item() for id_, _ in entry.top], abs=1e-4)


@pytest.mark.parametrize("max_step_tokens", [8, 17, 512])
def test_logprobs_are_those_of_the_plain_model_in_any_chunking_and_company(
    gpt: GPT, engine_of: MakeEngine, make_claim: MakeClaim, max_step_tokens: int
) -> None:
    engine = engine_of(gpt, max_step_tokens=max_step_tokens)
    for index, prompt in enumerate(PROMPTS):
        engine.add(make_claim(str(index), prompt, logprobs=index, prompt_logprobs=True, seed=index, **BENT))
    for index, prompt in enumerate(STRANGERS):
        engine.add(make_claim(f"stranger {index}", prompt))
    made = run(engine)
    for index, prompt in enumerate(PROMPTS):
        ours = made[str(index)]
        first, *later = ours.outputs
        rows = expected(gpt, prompt + ours.token_ids)[:-1]
        check(list(first.prompt_logprobs), prompt[1:], rows[: len(prompt) - 1], index)
        check(ours.logprobs, ours.token_ids, rows[len(prompt) - 1 :], index)
        assert not any(output.prompt_logprobs for output in later)
    strangers = [output for index in range(len(STRANGERS)) for output in made[f"stranger {index}"].outputs]
    assert not any(output.logprobs or output.prompt_logprobs for output in strangers)


def test_without_tokens_to_make_a_prompt_is_scored_alone(
    gpt: GPT, engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    text = [(7 * index) % 30 for index in range(64)]  # a whole context
    claim = make_claim("a", text, max_tokens=0, logprobs=0, prompt_logprobs=True)
    [output] = run(engine_of(gpt), claim)["a"].outputs
    assert output.end is not None
    assert (output.token_ids, output.end.finish_reason) == ((), "length")
    with torch.inference_mode():
        loss = cross_entropy(gpt(torch.tensor([text[:-1]])), torch.tensor([text[1:]])).item()
    assert -sum(entry.logprob for entry in output.prompt_logprobs) / 63 == pytest.approx(loss, abs=1e-4)


def test_a_prompt_that_is_cached_is_scored_all_the_same(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    engine = engine_of(make_gpt())
    run(engine, make_claim("before", PROMPTS[3]))
    made = run(engine, make_claim("a", PROMPTS[3], logprobs=0, prompt_logprobs=True))["a"]
    assert (len(made.outputs[0].prompt_logprobs), made.end.cached_tokens) == (36, 0)


def test_a_preempted_prompt_is_scored_once(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    claims = [
        make_claim(str(i), [i + 1] * 9, max_tokens=40, logprobs=0, prompt_logprobs=True, seed=i, temperature=1.0)
        for i in range(5)
    ]
    tight, preempted = engine_of(make_gpt(), num_pages=20, max_step_tokens=8), []
    made = run(tight, *claims, after_step=lambda: preempted.append(tight.last_step.num_preempted))
    assert sum(preempted) > 0
    for id_, undisturbed in run(engine_of(make_gpt()), *claims).items():
        ours = made[id_]
        assert ours.token_ids == undisturbed.token_ids
        assert [len(output.prompt_logprobs) for output in ours.outputs] == [8] + [0] * (len(ours.outputs) - 1)
        told, before = (
            [entry.logprob for entry in (*each.outputs[0].prompt_logprobs, *each.logprobs)]
            for each in (ours, undisturbed)
        )
        assert told == pytest.approx(before, abs=1e-4)


@pytest.mark.parametrize("num_logged", [1, 5])
def test_another_worker_goes_on_with_the_rest(
    make_gpt: Callable[..., GPT],
    tokenizer: CharTokenizer,
    engine_of: MakeEngine,
    make_claim: MakeClaim,
    num_logged: int,
) -> None:
    params = {"logprobs": 2, "prompt_logprobs": True, "logit_bias": {tokenizer.end_of_text_id: -100.0}}
    model = make_gpt()
    whole = run(engine_of(model), make_claim("a", PROMPTS[1], **params))["a"]
    rest = run(engine_of(model), make_claim("a", PROMPTS[1], whole.token_ids[:num_logged], **params))["a"]
    assert not any(output.prompt_logprobs for output in rest.outputs)
    told, before = rest.logprobs, whole.logprobs[num_logged:]
    assert [entry.token_id for entry in told] == [entry.token_id for entry in before]
    assert [entry.logprob for entry in told] == pytest.approx([entry.logprob for entry in before], abs=1e-4)
