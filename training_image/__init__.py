"""The run: what happens on the box, and the light core (contract, settings, catalog) that the CDK app shares."""
