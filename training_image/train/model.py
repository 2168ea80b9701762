"""The base model, its tokenizer, and the adapter that is trained on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from training_image.config.run_settings import ModelSettings, RunSettings
from training_image.core.errors import UserError
from training_image.storage.hub import MAIN, access_advice
from training_image.storage.secrets import read_secret
from training_image.train.masking import IGNORED


class ModelError(UserError):
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


def commit(settings: ModelSettings, record: Path) -> str | None:
    """The base model's commit in Hugging Face's cache, if the supervisor put it there (``WorkDir.base_model``)."""
    if not record.is_file():
        return None
    known = json.loads(record.read_text())
    same = known["base_model"] == settings.base_model and known["revision"] == (settings.revision or MAIN)
    return str(known["sha"]) if same else None  # a rerun by hand may want another model


def load_base(
    base: str | Path, settings: RunSettings, *, sha: str | None = None, token_secret: str | None = None
) -> tuple[Any, Any]:
    """(model on its device, tokenizer). A tokenizer without a padding token pads with its end token.

    Args:
        sha: commit of a model that is in Hugging Face's cache.
        token_secret: ARN of the secret with the Hub's token; read only for a model from the Hub that is not there.

    Raises:
        ModelError: if there is no such model, it may not be read, or it has no chat template.
    """
    device = device_for(use_cpu=settings.training.use_cpu)
    dtype = dtype_for(settings.model.torch_dtype, device)
    name, revision = settings.model.base_model, sha or settings.model.revision
    secret = None if sha or name.startswith("s3://") else token_secret
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
            + access_advice(secret, token)
        ) from error
    if tokenizer.chat_template is None:
        raise ModelError(
            f"Base model {name} has no chat template. Set LLM_MODEL__BASE_MODEL to a chat (instruct) model."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device), tokenizer


def add_lora(model: Any, settings: RunSettings, initial: Path | None = None) -> Any:
    """``model`` frozen, with an adapter: a fresh one, whose weights ``training.seed`` decides, or that of ``initial``.

    Raises:
        ModelError: if ``lora.target_modules`` names no module of this model, or others than ``initial`` adapts.
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
        model = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"LLM_LORA__TARGET_MODULES={lora.target_modules!r} does not fit the model: {error}") from error
    if initial is not None:
        _load_weights(model, initial, settings)
    return model


def _load_weights(model: Any, adapter: Path, settings: RunSettings) -> None:
    """Every weight of ``adapter`` has its place in the model's adapter and every place its weight, or it is refused."""
    weights = load_file(adapter / "adapter_model.safetensors")
    # As in save_adapter: left to "auto", PEFT would ask the Hub about the embeddings.
    places = get_peft_model_state_dict(model, save_embedding_layers=False)
    expected = {name: tensor.shape for name, tensor in places.items()}
    if {name: tensor.shape for name, tensor in weights.items()} != expected:
        modules = json.loads((adapter / "adapter_config.json").read_text()).get("target_modules")
        raise ModelError(
            f"LLM_MODEL__ADAPTER={settings.model.adapter} adapts other modules than LLM_LORA__TARGET_MODULES="
            f"{settings.lora.target_modules!r} does: set it to {json.dumps(modules)}."
        )
    set_peft_model_state_dict(model, weights)


def save_adapter(model: Any, tokenizer: Any, folder: Path, base_model: str) -> None:
    """Write the adapter and tokenizer; the adapter names ``base_model`` as the operator did, not a path of this
    instance."""
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
