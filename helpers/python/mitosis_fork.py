"""Functions to be called in each remote fork of this process, before it goes on.

    import mitosis_fork

    mitosis_fork.register(lambda generation: sessions.clear())

They are called on the main thread, in the order of their registration, with the generation number of
the new process: random and never 0. If one raises, the fork is ended and does not run. `random`,
`ssl`, `uuid`, `tempfile` and `numpy.random` need no registration.
"""

_functions = []
_seen = 0


def register(function):
    """Has `function(generation)` called in each remote fork. Returns it, to be a decorator too."""
    _functions.append(function)
    return function


def generation():
    """The generation number of this process; 0 if it was not forked, or where no node runs."""
    try:
        with open("/run/mitosis/generation") as file:
            return int(file.read(), 16)
    except FileNotFoundError:
        return 0


def run(number=None):
    """Calls the functions, once for each generation. The node does; a program that may be forked
    while it is busy does, too, before it draws a secret."""
    global _seen
    number = generation() if number is None else number
    if number != _seen:
        _seen = number
        for function in _functions:
            function(number)
