"""The model card of a checkpoint folder: what it is, how to load it, and what made it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.manifest import Manifest

MODEL_CARD = "README.md"
_CARD = """---
library_name: {library}
pipeline_tag: text-generation
license: other
tags:
- minigpt
---

# {title}

{what}

| | |
|---|---|
| parameters | {num_parameters:,} |
| context | {context_length:,} tokens |
| vocabulary | {vocab_size:,} entries |
| weights | {dtype} |
{measured}
## Use

minigpt serves this folder over HTTP:

```
minigpt serve --model PATH/OF/THIS/FOLDER
```
{other_programs}{training}"""
_TRANSFORMERS = """
transformers loads it:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "PATH/OF/THIS/FOLDER"
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("The ", return_tensors="pt", return_token_type_ids=False)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))
```
"""
_OWN_LAYOUT = """
Its layout is minigpt's own: other programs do not load it.
"""
_TRAINING = """
## Training

With these settings as `settings.toml`, and `--data TEXT` where `corpus` does not lead to the text:

```
minigpt train settings.toml
```

```toml
{settings}
```
"""


def write_model_card(folder: Path, manifest: Manifest, model_type: str) -> None:
    """Write the card into `folder`; nothing checks it: it is for people to edit.

    Args:
        folder: Of the checkpoint.
        manifest: Of the checkpoint.
        model_type: As `config.json` has it.
    """
    corpus = Path(manifest.corpus).name  # of a path that was given no more than this is told
    is_ours, is_trained = model_type == "minigpt", manifest.step > 0
    card = _CARD.format(
        library="minigpt" if is_ours else "transformers",
        title=f"A small language model of {corpus}" if corpus else "A language model",
        what="Trained with minigpt." if is_trained else "Not trained by minigpt: imported, or of random weights.",
        num_parameters=manifest.num_parameters,
        context_length=manifest.context_length,
        vocab_size=manifest.vocab_size,
        dtype=manifest.dtype,
        measured=_measured(manifest),
        other_programs=_OWN_LAYOUT if is_ours else _TRANSFORMERS,
        training=_TRAINING.format(settings=_settings(manifest, corpus)) if is_trained else "",
    )
    (folder / MODEL_CARD).write_text(card, "utf-8")


def _measured(manifest: Manifest) -> str:
    rows = {"trained on": f"{manifest.tokens:,} tokens in {manifest.step:,} steps"} if manifest.step else {}
    if manifest.validation_loss is not None:
        rows["validation loss"] = f"{manifest.validation_loss:.4f} nats a character, on text held out"
    return "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def _settings(manifest: Manifest, corpus: str) -> str:
    """Return the settings of the run as TOML, the corpus by its name alone."""
    tables = {name: table for name, table in manifest.train_config.items() if isinstance(table, dict)}
    tables["data"] = tables.get("data", {}) | {"corpus": corpus}
    return "\n".join(line for name, table in tables.items() for line in (f"[{name}]", *_assignments(table)))


def _assignments(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield scalars and lists, which TOML writes as JSON does; what is null is left out."""
    for key, value in table.items():
        if value is not None:
            yield f"{key} = {json.dumps(value, ensure_ascii=False)}"
