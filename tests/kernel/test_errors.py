"""The tree of errors in the documentation of ``derops.errors`` is the one in the code."""

import importlib
import pkgutil
import re

import derops
import derops.errors
import derops_agent
import derops_headend
import derops_operator
from derops.errors import DeropsError


def import_all() -> None:
    for package in (derops, derops_agent, derops_headend, derops_operator):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def of_the_code(kind: type[DeropsError]) -> dict[str, str]:
    """Return the public errors below one, each with the one it is a kind of."""
    below = {}
    for each in kind.__subclasses__():
        if not each.__name__.startswith("_") and each.__module__.startswith("derops"):
            below[each.__name__] = kind.__name__
        below |= of_the_code(each)
    return below


def of_the_documentation() -> dict[str, str]:
    parents, below = {-1: "DeropsError"}, {}
    for line in (derops.errors.__doc__ or "").splitlines():
        if drawn := re.match(r"([|` ]*)-- (\w+)", line):
            depth = len(drawn[1]) // 4
            parents[depth] = drawn[2]
            below[drawn[2]] = parents[depth - 1]
    return below


def test_every_error_is_in_the_tree_and_no_other() -> None:
    import_all()

    assert of_the_documentation() == of_the_code(DeropsError)


def test_what_the_product_raises_and_lets_out_is_in_the_tree() -> None:
    import_all()
    outside = [
        kind
        for kind in exceptions(Exception)
        if kind.__module__.split(".")[0].startswith("derops")
        and not kind.__name__.startswith("_")
        and not issubclass(kind, DeropsError)
    ]

    assert outside == []


def exceptions(kind: type[Exception]) -> set[type[Exception]]:
    return {kind}.union(*(exceptions(each) for each in kind.__subclasses__()))
