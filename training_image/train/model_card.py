"""The adapter's model card: what it was trained on, with what, how well it does, and how to load it."""

from __future__ import annotations

import json
from typing import Any

from training_image.core.records import Run

_CARD = """\
---
base_model: {hub_id}
library_name: peft
pipeline_tag: text-generation
tags: [lora, sft]
---

# {run_name}

A LoRA adapter for `{base_model}`{at_commit}, trained by LLM Tuning Lab in run `{run_id}`.

## Results on held-out examples

| | before | after |
|---|---|---|
| loss (nats per token) | {before[loss]:.4f} | {after[loss]:.4f} |
| perplexity | {before[perplexity]:.2f} | {after[perplexity]:.2f} |
| exact match | {before[exact_match]:.1%} | {after[exact_match]:.1%} |

{after[examples]} held-out examples; {train_examples} training examples; {steps} steps.

## Load it

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{load_from}")
model = PeftModel.from_pretrained(base, "path/to/adapter")
tokenizer = AutoTokenizer.from_pretrained("path/to/adapter")
```

## Settings

```json
{settings}
```
"""


def model_card(
    run: Run,
    settings: dict[str, Any],
    *,
    sha: str | None,
    train_examples: int,
    steps: int,
    before: dict[str, Any],
    after: dict[str, Any],
) -> str:
    """The text of the card, from ``run.json``, the settings in force, and the two evaluations.

    Args:
        sha: the base model's commit; None: it is not from the Hub.
    """
    base_model = settings["model"]["base_model"]
    on_hub = not base_model.startswith("s3://")
    return _CARD.format(
        # The Hub refuses a card whose base_model is not a Hub id.
        hub_id=json.dumps(base_model if on_hub else None),
        load_from=base_model if on_hub else "path/to/base-model",
        base_model=base_model,
        at_commit=f" at commit `{sha}`" if sha else "",
        run_name=run.run_name,
        run_id=run.run_id,
        before=before,
        after=after,
        train_examples=train_examples,
        steps=steps,
        settings=json.dumps(settings, indent=2),
    )
