"""The plainest decoder: no cache, no batch. Slow, and therefore the one that every fast path is tested against."""

from collections.abc import Iterator, Sequence

import torch

from training.models.families import AnyModel


@torch.inference_mode()
def sample(
    model: AnyModel,
    token_ids: Sequence[int],
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    banned: frozenset[int] = frozenset(),
    generator: torch.Generator | None = None,
) -> Iterator[int]:
    """Yield one token after another, without end; past the context length the oldest are forgotten.

    Args:
        model: In evaluation mode.
        token_ids: The prompt, at least one token.
        temperature: 0 takes the likeliest token.
        top_k: Draw from the likeliest k only.
        banned: Ids that are never drawn.
        generator: Source of the random numbers, on the CPU; None: torch's own.
    """
    device = next(model.parameters()).device
    ids = list(token_ids)
    while True:
        window = torch.tensor([ids[-model.state_spec.max_context :]], device=device)  # (1, T)
        logits = model(window)[0, -1].float().cpu()  # (V,)
        logits[sorted(banned)] = float("-inf")
        if temperature == 0:
            token_id = int(logits.argmax())
        else:
            if top_k is not None and top_k < len(logits):
                logits[logits < logits.topk(top_k).values[-1]] = float("-inf")
            token_id = int((logits / temperature).softmax(-1).multinomial(1, generator=generator))
        ids.append(token_id)
        yield token_id
