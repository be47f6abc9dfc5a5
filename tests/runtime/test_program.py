"""The cost of compiled programs equals known counts: matrix products, memory traffic, bytes sent in a ring."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax.runtime.mesh import Mesh, MeshDevices
from kd_jax.runtime.program import Collective, HloArray, analyze_program

M, K, N, TIMES = 8, 16, 32, 50


def cost_of(function, *shapes):
    """Return the cost of a function of float32 arrays of these shapes."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return analyze_program(jax.jit(function).lower(*arrays).compile())


def test_matrix_product_has_two_flops_per_multiplication_as_in_xla():
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, M, K), (3, K, N))]
    compiled = jax.jit(jnp.matmul).lower(*arrays).compile()
    assert analyze_program(compiled).flops == 2 * 3 * M * K * N == compiled.cost_analysis()["flops"]
    assert analyze_program(compiled).traffic == 4 * 3 * (M * K + K * N + M * N)


def test_loop_body_counts_once_per_iteration():
    def repeated(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    looped = cost_of(repeated, (M, K), (TIMES, K, K))
    assert looped.flops == TIMES * 2 * M * K * K
    outer = lambda x, stack: jax.lax.fori_loop(0, 3, lambda _, x: repeated(x, stack), x)  # noqa: E731
    assert cost_of(outer, (M, K), (TIMES, K, K)).flops == 3 * looped.flops
    whole = 4 * TIMES * K * K
    assert whole < looped.traffic < 10 * whole  # it reads one matrix of the stack at a time


def test_update_in_place_counts_its_part_alone():
    """A loop writes row after row of an array many times as large."""
    rows, width, long = 4, 64, 1000

    def write(x, new):
        return jax.lax.fori_loop(0, rows, lambda i, x: jax.lax.dynamic_update_index_in_dim(x, new, i, 0), x)

    cost = cost_of(write, (long, width), (width,))
    assert cost.traffic < 3 * 4 * long * width  # the copy of the argument, and little else


def cost_on_mesh(mesh, function, *layouts):
    """Return the cost of a function of float32 arrays [64, 64] with these layouts on a mesh."""
    on = MeshDevices(mesh.over(8)).mesh
    arrays = [jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(on, layout)) for layout in layouts]
    return analyze_program(jax.jit(function, out_shardings=NamedSharding(on, PartitionSpec())).lower(*arrays).compile())


@pytest.mark.parametrize(
    "mesh, devices", [(Mesh(), 8), (Mesh(data=2, fsdp=4), 2), (Mesh(data=4, tensor=2), 4)], ids=str
)
def test_all_reduce_sends_everything_twice_but_for_the_own_part(mesh, devices):
    cost = cost_on_mesh(mesh, lambda x: x.sum(0), PartitionSpec("data"))
    (collective,) = cost.collectives
    assert collective == Collective("all-reduce", (HloArray("f32", (64,)),), devices, 1)
    assert cost.bytes_sent == {"all-reduce": 2 * 4 * 64 * (devices - 1) / devices}


def test_all_gather_sends_everything_once():
    cost = cost_on_mesh(Mesh(fsdp=4), lambda x: 2 * x, PartitionSpec("fsdp"))
    assert cost.bytes_sent == {"all-gather": 4 * 64 * 64 * 3 / 4}


def test_all_reduce_read_in_parts_is_a_reduce_scatter():
    on = MeshDevices(Mesh(fsdp=8).over(8)).mesh
    sharded, whole = NamedSharding(on, PartitionSpec("fsdp")), NamedSharding(on, PartitionSpec())

    def summed(x, y):
        product = jax.lax.with_sharding_constraint(x.T @ y, whole)
        return jax.lax.with_sharding_constraint(product, sharded), product.sum(1)

    arrays = [jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharded)] * 2
    only_part = jax.jit(lambda x, y: summed(x, y)[0]).lower(*arrays).compile()
    assert analyze_program(only_part).bytes_sent == {"reduce-scatter": 4 * 64 * 64 * 7 / 8}
    both = jax.jit(summed).lower(*arrays).compile()
    assert analyze_program(both).bytes_sent == {"all-reduce": 2 * 4 * 64 * 64 * 7 / 8}


def test_collectives_of_a_loop_count_once_per_iteration():
    step = lambda x, _: (x + jax.lax.with_sharding_constraint(x.sum(0), PartitionSpec())[None], None)  # noqa: E731
    on = MeshDevices(Mesh().over(8)).mesh
    rows = NamedSharding(on, PartitionSpec("data"))

    @functools.partial(jax.jit, out_shardings=rows)
    def looped(x):
        return jax.lax.scan(step, x, None, TIMES)[0]

    with jax.sharding.use_abstract_mesh(on.abstract_mesh):
        compiled = looped.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=rows)).compile()
    (collective,) = analyze_program(compiled).collectives
    assert (collective.kind, collective.times) == ("all-reduce", TIMES)
    np.testing.assert_allclose(analyze_program(compiled).bytes_sent["all-reduce"], TIMES * 2 * 4 * 64 * 7 / 8)
