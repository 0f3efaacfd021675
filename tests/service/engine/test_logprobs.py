"""Log-probabilities are those of the model's own logits, told once and beside their tokens, however the work is cut."""

from collections.abc import Callable

import pytest
import torch

from service.engine.engine import Engine
from service.engine.interface import StepOutput
from service.protocol import Claim, TokenLogprobs
from training.models.gpt import GPT
from training.objectives import cross_entropy
from training.tokenizers.char import CharTokenizer

PROMPTS = [[1], [5, 3, 8, 2, 11], list(range(20)), [9] * 37]
STRANGERS = [[4, 4, 4], list(range(30, 2, -1)), [7, 1] * 11]
BENT = {"temperature": 0.7, "top_k": 4, "repetition_penalty": 1.5, "presence_penalty": 1.0, "logit_bias": {3: 4.0}}

MakeEngine = Callable[..., Engine]
MakeClaim = Callable[..., Claim]


def collect(engine: Engine) -> dict[str, list[StepOutput]]:
    outputs: dict[str, list[StepOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.id, []).append(output)
    return outputs


def ids_of(outputs: list[StepOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


def told_of(outputs: list[StepOutput]) -> list[TokenLogprobs]:
    return [entry for output in outputs for entry in output.logprobs]


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
    outputs = collect(engine)
    for index, prompt in enumerate(PROMPTS):
        first, *later = outputs[str(index)]
        generated = ids_of(outputs[str(index)])
        rows = expected(gpt, prompt + generated)[:-1]
        check(list(first.prompt_logprobs), prompt[1:], rows[: len(prompt) - 1], index)
        check(told_of(outputs[str(index)]), generated, rows[len(prompt) - 1 :], index)
        assert not any(output.prompt_logprobs for output in later)
    strangers = [output for index in range(len(STRANGERS)) for output in outputs[f"stranger {index}"]]
    assert not any(output.logprobs or output.prompt_logprobs for output in strangers)


def test_without_tokens_to_make_a_prompt_is_scored_alone(
    gpt: GPT, engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    engine = engine_of(gpt)
    text = [(7 * index) % 30 for index in range(64)]  # a whole context
    engine.add(make_claim("a", text, max_tokens=0, logprobs=0, prompt_logprobs=True))
    [output] = collect(engine)["a"]
    assert output.end is not None
    assert (output.token_ids, output.end.finish_reason) == ((), "length")
    with torch.inference_mode():
        loss = cross_entropy(gpt(torch.tensor([text[:-1]])), torch.tensor([text[1:]])).item()
    assert -sum(entry.logprob for entry in output.prompt_logprobs) / 63 == pytest.approx(loss, abs=1e-4)


def test_a_prompt_that_is_cached_is_scored_all_the_same(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    engine = engine_of(make_gpt())
    engine.add(make_claim("before", PROMPTS[3]))
    collect(engine)
    engine.add(make_claim("a", PROMPTS[3], logprobs=0, prompt_logprobs=True))
    first, *_, last = collect(engine)["a"]
    assert last.end is not None
    assert (len(first.prompt_logprobs), last.end.cached_tokens) == (36, 0)


def test_a_preempted_prompt_is_scored_once(
    make_gpt: Callable[..., GPT], engine_of: MakeEngine, make_claim: MakeClaim
) -> None:
    claims = [
        make_claim(str(i), [i + 1] * 9, max_tokens=40, logprobs=0, prompt_logprobs=True, seed=i, temperature=1.0)
        for i in range(5)
    ]
    roomy, tight = engine_of(make_gpt()), engine_of(make_gpt(), num_pages=20, max_step_tokens=8)
    for claim in claims:
        roomy.add(claim)
        tight.add(claim)
    tokens: dict[str, list[StepOutput]] = {}
    preempted = 0
    while tight.has_work:
        for output in tight.step():
            tokens.setdefault(output.id, []).append(output)
        preempted += tight.last_step.num_preempted
    assert preempted > 0
    for id_, undisturbed in collect(roomy).items():
        assert ids_of(tokens[id_]) == ids_of(undisturbed)
        assert [len(output.prompt_logprobs) for output in tokens[id_]] == [8] + [0] * (len(tokens[id_]) - 1)
        told = [entry.logprob for entry in (*tokens[id_][0].prompt_logprobs, *told_of(tokens[id_]))]
        before = [entry.logprob for entry in (*undisturbed[0].prompt_logprobs, *told_of(undisturbed))]
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
    engine = engine_of(model)
    engine.add(make_claim("a", PROMPTS[1], **params))
    whole = collect(engine)["a"]
    engine = engine_of(model)
    engine.add(make_claim("a", PROMPTS[1], ids_of(whole)[:num_logged], **params))
    rest = collect(engine)["a"]
    assert not any(output.prompt_logprobs for output in rest)
    told, before = told_of(rest), told_of(whole)[num_logged:]
    assert [entry.token_id for entry in told] == [entry.token_id for entry in before]
    assert [entry.logprob for entry in told] == pytest.approx([entry.logprob for entry in before], abs=1e-4)
