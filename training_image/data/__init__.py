"""The training data: found, checked line by line, and split. No torch is imported here: the operator's commands check
data by the same code as the trainer."""
