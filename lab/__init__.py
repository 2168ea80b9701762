"""The operator's CLI: conveniences on top of `cdk`, and the embedded local cloud."""
