"""A base model of a few kilobytes, its byte-level tokenizer, and a little data: everything real but the size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
END = "<|im_end|>"
EXAMPLES = 200


def tokenizer(
    template: str = CHATML, specials: tuple[str, ...] = (), end: str = END, eos: str = END
) -> PreTrainedTokenizerFast:
    """One token a byte, and one for each special token, as in the models that the templates belong to."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={character: index for index, character in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    names = dict.fromkeys(("<pad>", "<s>", "<|im_start|>", end, eos, *specials))
    core.add_special_tokens([AddedToken(name, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",  # noqa: S106 tokens of a vocabulary
        eos_token=eos,
        pad_token="<pad>",  # noqa: S106
        chat_template=template,
    )


def save_model(folder: Path, **shape: int) -> None:
    """A Llama with random weights (always the same) and its tokenizer; ``shape``: other sizes, by ``LlamaConfig``."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokens = tokenizer()
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "vocab_size": len(tokens),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
    }
    config = LlamaConfig(
        **(small | shape),
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokens.save_pretrained(folder)


def write_data(path: Path) -> Path:
    """Questions and answers as JSON lines."""
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"{n} plus {n} is {2 * n}."} for n in range(EXAMPLES)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
