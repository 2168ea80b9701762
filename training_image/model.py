"""The base model, its tokenizer, and the adapter that is trained on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from training_image.masking import IGNORED
from training_image.secrets import read_secret
from training_image.settings import ModelSettings, RunSettings


class ModelError(ValueError):
    """The base model cannot be loaded or adapted; the message says which setting to change."""


def device_for(*, use_cpu: bool) -> torch.device:
    """The device of the run.

    Raises:
        ModelError: if there is no GPU and training on CPU was not asked for.
    """
    if use_cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelError(
            "PyTorch sees no GPU. Training on a CPU is slow, so it happens only on request: LLM_TRAINING__USE_CPU=true."
        )
    return torch.device("cuda")


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """The data type of the frozen weights; the adapter itself is always float32."""
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cpu":
        return torch.float32  # bfloat16 is several times slower on CPUs without matrix units for it
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def source(settings: ModelSettings, downloaded: Path) -> str:
    """What to load the base model from: the Hub id, or for ``s3://`` the folder the supervisor downloaded it to.

    Raises:
        ModelError: if the folder holds no model.
    """
    if not settings.base_model.startswith("s3://"):
        return settings.base_model
    if not (downloaded / "config.json").is_file():
        raise ModelError(
            f"{settings.base_model} holds no config.json. LLM_MODEL__BASE_MODEL must name a prefix with config.json, "
            "the tokenizer's files and *.safetensors directly below it."
        )
    return str(downloaded)


def load_base(base: str | Path, settings: RunSettings, *, token_secret: str | None = None) -> tuple[Any, Any]:
    """(model on its device, tokenizer). A tokenizer without a padding token pads with its end token.

    Args:
        token_secret: ARN of the secret with the Hub's token; read only for a model from the Hub.

    Raises:
        ModelError: if there is no such model, it may not be read, or it has no chat template.
    """
    device = device_for(use_cpu=settings.training.use_cpu)
    dtype = dtype_for(settings.model.torch_dtype, device)
    name, revision = settings.model.base_model, settings.model.revision
    secret = None if name.startswith("s3://") else token_secret
    token = read_secret(secret) if secret else None
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, revision=revision, token=token)
        model: Any = AutoModelForCausalLM.from_pretrained(base, revision=revision, token=token, dtype=dtype)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # a full disk is not a wrong setting
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"Base model {name} could not be loaded: {reason} Check LLM_MODEL__BASE_MODEL and that you may read it."
            + _access_advice(secret, token)
        ) from error
    if tokenizer.chat_template is None:
        raise ModelError(
            f"Base model {name} has no chat template. Set LLM_MODEL__BASE_MODEL to a chat (instruct) model."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device), tokenizer


def _access_advice(secret: str | None, token: str | None) -> str:
    if secret is None:
        return ""
    if token is None:
        return (
            " A gated or private model needs your Hugging Face token: aws secretsmanager put-secret-value "
            f"--secret-id {secret} --secret-string file://token.txt"
        )
    return " For a gated model, accept its terms on its page with the account that the lab's Hugging Face token is of."


def add_lora(model: Any, settings: RunSettings) -> Any:
    """``model`` frozen, with a fresh adapter; ``training.seed`` decides its initial weights.

    Raises:
        ModelError: if ``lora.target_modules`` names no module of this model.
    """
    lora = settings.lora
    torch.manual_seed(settings.training.seed)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"LLM_LORA__TARGET_MODULES={lora.target_modules!r} does not fit the model: {error}") from error


def save_adapter(model: Any, tokenizer: Any, folder: Path, base_model: str) -> None:
    """Write the adapter and tokenizer; the adapter names ``base_model`` as the operator did, not a path of this box."""
    model.peft_config["default"].base_model_name_or_path = base_model
    # LoRA does not resize embeddings; left to "auto", PEFT asks the Hub to find that out.
    model.save_pretrained(folder, save_embedding_layers=False)
    tokenizer.save_pretrained(folder)


def load_for_evaluation(base: str | Path, adapter: Path | None, settings: RunSettings) -> tuple[Any, Any]:
    """(model in evaluation mode, tokenizer): the base model alone, or with the adapter saved in ``adapter``.

    Raises:
        ModelError: as ``load_base``.
    """
    model, tokenizer = load_base(base, settings)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    return model.eval(), tokenizer


def supervised_nll(model: Any, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood of the supervised tokens of a right-padded batch.

    Logits are computed only for columns that hold a supervised token in some row: on CPU the rest of the vocabulary
    projection costs as much as the layers. No attention mask is needed, because attention is causal and the padding is
    at the right.
    """
    targets = labels[:, 1:]
    columns = (targets != IGNORED).any(dim=0).nonzero().flatten()
    logits = model(input_ids=input_ids, logits_to_keep=columns, use_cache=False).logits
    targets = targets[:, columns]
    supervised = targets != IGNORED
    return functional.cross_entropy(logits[supervised].float(), targets[supervised], reduction="sum")
