import math
from collections.abc import Callable

import pytest
import torch

from training.config import DataConfig
from training.data.corpus import Corpus
from training.data.prepare import PreparedData, encode_splits
from training.evaluate import evaluate, random_estimate
from training.models.families import AnyModel
from training.models.gpt import GPT
from training.objectives import cross_entropy
from training.tokenizers.bpe import BpeTokenizer
from training.tokenizers.char import CharTokenizer

TEXT = "né voilà, a text of several lines;\n" * 40


@pytest.fixture(params=["char", "bpe"])
def data(request: pytest.FixtureRequest) -> PreparedData:
    tokenizer = CharTokenizer.train([TEXT]) if request.param == "char" else BpeTokenizer.train([TEXT], 270)
    return encode_splits(DataConfig(), Corpus(name="text", documents=(TEXT,)), tokenizer)


def test_every_token_but_the_first_is_predicted_once_from_its_own_window(
    make_model_of: Callable[..., AnyModel], family: str, data: PreparedData
) -> None:
    context = 16
    model = make_model_of(family, vocab_size=data.tokenizer.vocab_size, context_length=context)
    ids = data.validation.tolist()
    losses = []
    for at in range(1, len(ids)):
        first = (at - 1) // context * context
        with torch.inference_mode():
            logits = model(torch.tensor([ids[first:at]]))[0, -1]
        losses.append(-float(logits.log_softmax(-1)[ids[at]]))
    result = evaluate(model, data, context, carries=False)
    assert result.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_a_model_of_fixed_state_reads_on_and_on(
    make_model_of: Callable[..., AnyModel], slot_family: str, data: PreparedData
) -> None:
    model = make_model_of(slot_family, vocab_size=data.tokenizer.vocab_size)
    [length, rest] = divmod(len(data.validation) - 1, 64)
    total = 0.0
    for first, num_targets in [*((length * row, length) for row in range(64)), (64 * length, rest)]:
        ids = torch.from_numpy(data.validation[first : first + num_targets + 1].astype("int64"))
        with torch.inference_mode():
            total += float(cross_entropy(model(ids[None, :-1]), ids[None, 1:])) * num_targets if num_targets else 0.0
    for context in (1, 16):
        assert evaluate(model, data, context).loss == pytest.approx(total / (len(data.validation) - 1), abs=1e-5)


def test_a_model_that_knows_nothing_costs_ln_v_however_it_is_counted(
    make_gpt: Callable[..., GPT], data: PreparedData
) -> None:
    model = make_gpt(vocab_size=data.tokenizer.vocab_size)
    model.scale_logits(0.0)
    result = evaluate(model, data, 8)
    nats = math.log(data.tokenizer.vocab_size)
    tokens_a_char = len(data.validation) / data.validation_chars
    assert result.loss == result.raw_loss == pytest.approx(nats, rel=1e-5)
    assert result.nats_per_char == pytest.approx(nats * tokens_a_char, rel=1e-5)
    text = data.tokenizer.decode(data.validation.tolist())
    bits = nats * len(data.validation) / len(text.encode()) / math.log(2)
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-5)
    if data.tokenizer.kind == "char":
        assert result.nats_per_char == pytest.approx(result.loss)


@pytest.mark.parametrize("tied", [False, True])
def test_a_temperature_is_what_the_scaled_model_loses(
    make_gpt: Callable[..., GPT], data: PreparedData, tied: bool
) -> None:
    model = make_gpt(vocab_size=data.tokenizer.vocab_size, tie_embeddings=tied)
    result = evaluate(model, data, 16, temperature=1.7)
    assert evaluate(model, data, 16).loss == pytest.approx(result.raw_loss)
    model.scale_logits(1 / 1.7)
    assert evaluate(model, data, 16).loss == pytest.approx(result.loss, abs=1e-5)
    assert abs(result.loss - result.raw_loss) > 0.01


def test_the_random_estimate_is_near_the_whole_and_repeats(make_gpt: Callable[..., GPT], data: PreparedData) -> None:
    model = make_gpt(vocab_size=data.tokenizer.vocab_size)
    estimates = [random_estimate(model, data.validation, 16, batch_size=4, seed=s) for s in (1, 1, 2)]
    assert estimates[0] == estimates[1] != estimates[2]
    assert estimates[0] == pytest.approx(evaluate(model, data, 16).loss, rel=0.05)


def test_evaluation_leaves_the_models_mode(make_gpt: Callable[..., GPT], data: PreparedData) -> None:
    model = make_gpt(vocab_size=data.tokenizer.vocab_size, dropout=0.5).train()
    assert evaluate(model, data, 16) == evaluate(model, data, 16)
    assert model.training
