"""What the operator may say, and the facts it is checked against. Imports no torch: the CDK app reads it at synth."""
