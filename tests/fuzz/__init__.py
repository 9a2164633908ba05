"""Inputs from outside, tried at random: a small number in the fast suite, for minutes with `nox -s fuzz`."""
