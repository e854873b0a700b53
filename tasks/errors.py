"""What the person at the command line did, as opposed to what went wrong on the way."""


class InputError(Exception):
    """Wrong use or unusable input: one sentence that says what was wrong, where, and what to do. Exit code 2."""
