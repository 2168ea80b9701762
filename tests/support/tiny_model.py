"""The sample model of the chaos command serves the tests too."""

from lab.chaos.sample import CHATML, END, save_model, tokenizer

__all__ = ["CHATML", "END", "save_model", "tokenizer"]
