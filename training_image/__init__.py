"""The run: what happens on the instance, and the light core (contract, settings, catalog) that the CDK app shares."""
