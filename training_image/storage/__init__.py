"""What a run keeps and fetches: checkpoints, base models from the Hub, tokens."""
