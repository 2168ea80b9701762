"""The demo: real questions, a real small model, and the product's own commands against the local cloud."""
