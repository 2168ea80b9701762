"""`make smoke-aws`: the acceptance run in a real account, for under a dollar."""
