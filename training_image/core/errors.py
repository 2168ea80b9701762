"""The one base of all errors that a person caused and can mend."""


class UserError(Exception):
    """Its message is for that person: what is wrong, where, and what to do next. No stack trace belongs beside it."""
