"""The trainer. Only this room imports torch, and nothing imports it but its own entry point."""

import os

# Before any Hugging Face import: no calls home.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
