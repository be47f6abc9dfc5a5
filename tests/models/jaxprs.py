"""The equations of a traced program."""

from collections.abc import Iterator

from jax.extend.core import jaxprs_in_params


def equations(jaxpr) -> Iterator:
    """Yield every equation, including those of inner programs."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)
