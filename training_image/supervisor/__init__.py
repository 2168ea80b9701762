"""The container's own process: makes one attempt at a run and watches over the trainer."""
