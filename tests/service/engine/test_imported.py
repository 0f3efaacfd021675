"""Models of other programs, imported, are served: batched, they write what transformers writes alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from service.config import EngineSettings
from service.engine.kernels.library import best_level
from service.engine.loading import load_engine
from service.protocol import Claim
from tests.service.engine.stepping import finish
from tests.training.foreign import MAKES, save_model
from training.exchange.hugging_face import import_hf
from training.tokenizers.loading import load_tokenizer

DOCUMENTS = ["the quick brown fox jumps over the lazy dog 1234. " * 9]
PROMPTS = ("the quick", "fox", "a lazy, lazy dog 12 ")


@pytest.mark.parametrize(("make", "kernels"), [*((make, "torch") for make in MAKES), ("qwen", "native")])
def test_greedy_text_is_that_of_transformers(
    tmp_path: Path,
    make_claim: Callable[..., Claim],
    make: str,
    kernels: str,
) -> None:
    if kernels == "native" and best_level() is None:
        pytest.skip("no native kernels: the package was installed without a C++ compiler")
    save_model(tmp_path / "hf", make, DOCUMENTS)
    import_hf(tmp_path / "hf", tmp_path / "ours")
    tokenizer = load_tokenizer(tmp_path / "ours" / "tokenizer.json")
    settings = EngineSettings(device="cpu", dtype="fp32", kernels=kernels, max_num_seqs=4, max_step_tokens=16)
    engine = load_engine(tmp_path / "ours", settings)
    prompts = {text: tokenizer.encode(text) for text in PROMPTS}
    written = finish(engine, *(make_claim(text, token_ids, max_tokens=20) for text, token_ids in prompts.items()))

    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    beyond = range(tokenizer.vocab_size, peer.config.vocab_size)
    never = sorted({*tokenizer.special_ids, *beyond} - {tokenizer.end_of_text_id})
    for text, token_ids in prompts.items():
        row = torch.tensor([token_ids])
        answer = peer.generate(
            row,
            attention_mask=torch.ones_like(row),
            max_new_tokens=20,
            do_sample=False,
            suppress_tokens=never,
            pad_token_id=tokenizer.end_of_text_id,
        )
        assert written[text] == answer[0, len(token_ids) :].tolist()
