"""What is read of a compiled program is what is known of it: products, traffic, and what a ring sends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from kd_jax.errors import KdError
from kd_jax.runtime.backends import simulate_devices
from kd_jax.runtime.mesh import Mesh, MeshDevices
from kd_jax.runtime.program import Array, Collective, analyze_program

M, K, N, TIMES = 8, 16, 32, 50


def of(function, *shapes):
    """The work of a function of float32 arrays of these shapes."""
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return analyze_program(jax.jit(function).lower(*arrays).compile())


def test_a_product_has_two_flops_for_each_multiplication_and_xla_says_so_too():
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3, M, K), (3, K, N))]
    compiled = jax.jit(jnp.matmul).lower(*arrays).compile()
    assert analyze_program(compiled).flops == 2 * 3 * M * K * N == compiled.cost_analysis()["flops"]
    assert analyze_program(compiled).traffic == 4 * 3 * (M * K + K * N + M * N)


def test_what_a_loop_repeats_counts_as_often_as_it_runs():
    def repeated(x, stack):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, stack)[0]

    looped = of(repeated, (M, K), (TIMES, K, K))
    assert looped.flops == TIMES * 2 * M * K * K
    outer = lambda x, stack: jax.lax.fori_loop(0, 3, lambda _, x: repeated(x, stack), x)  # noqa: E731
    assert of(outer, (M, K), (TIMES, K, K)).flops == 3 * looped.flops
    whole = 4 * TIMES * K * K
    assert whole < looped.traffic < 10 * whole  # of the stack it reads one matrix at a time


def test_what_is_changed_in_place_is_not_moved_as_a_whole():
    """A loop that writes row after row: the array is many times as large as what the loop writes in all."""
    rows, width, long = 4, 64, 1000

    def write(x, new):
        return jax.lax.fori_loop(0, rows, lambda i, x: jax.lax.dynamic_update_index_in_dim(x, new, i, 0), x)

    work = of(write, (long, width), (width,))
    assert work.traffic < 3 * 4 * long * width  # the copy of the argument, and little else


def over(mesh, function, *layouts):
    """The collectives of a function of float32 arrays [64, 64] that lie on a mesh so."""
    on = MeshDevices(mesh.over(8)).mesh
    arrays = [jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=NamedSharding(on, layout)) for layout in layouts]
    return analyze_program(jax.jit(function, out_shardings=NamedSharding(on, PartitionSpec())).lower(*arrays).compile())


@pytest.mark.parametrize(
    "mesh, devices", [(Mesh(), 8), (Mesh(data=2, fsdp=4), 2), (Mesh(data=4, tensor=2), 4)], ids=str
)
def test_a_sum_over_devices_is_sent_twice_but_for_each_ones_part(mesh, devices):
    work = over(mesh, lambda x: x.sum(0), PartitionSpec("data"))
    (one,) = work.collectives
    assert one == Collective("all-reduce", (Array("f32", (64,)),), devices, 1)
    assert work.bytes_sent == {"all-reduce": 2 * 4 * 64 * (devices - 1) / devices}


def test_jax_that_has_begun_has_no_more_devices_than_it_had():
    assert jax.device_count() == 8
    with pytest.raises(KdError, match="--devices 9: JAX has begun with 8"):
        simulate_devices(9)
    simulate_devices(8)


def test_what_is_gathered_is_sent_once():
    work = over(Mesh(fsdp=4), lambda x: 2 * x, PartitionSpec("fsdp"))
    assert work.bytes_sent == {"all-gather": 4 * 64 * 64 * 3 / 4}


def test_an_all_reduce_of_which_each_device_takes_its_part_is_a_reduce_scatter():
    on = MeshDevices(Mesh(fsdp=8).over(8)).mesh
    cut, whole = NamedSharding(on, PartitionSpec("fsdp")), NamedSharding(on, PartitionSpec())

    def summed(x, y):
        product = jax.lax.with_sharding_constraint(x.T @ y, whole)
        return jax.lax.with_sharding_constraint(product, cut), product.sum(1)

    arrays = [jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=cut)] * 2
    only_part = jax.jit(lambda x, y: summed(x, y)[0]).lower(*arrays).compile()
    assert analyze_program(only_part).bytes_sent == {"reduce-scatter": 4 * 64 * 64 * 7 / 8}
    both = jax.jit(summed).lower(*arrays).compile()
    assert analyze_program(both).bytes_sent == {"all-reduce": 2 * 4 * 64 * 64 * 7 / 8}


def test_a_loops_collectives_count_each_time():
    step = lambda x, _: (x + jax.lax.with_sharding_constraint(x.sum(0), PartitionSpec())[None], None)  # noqa: E731
    on = MeshDevices(Mesh().over(8)).mesh
    rows = NamedSharding(on, PartitionSpec("data"))

    @functools.partial(jax.jit, out_shardings=rows)
    def looped(x):
        return jax.lax.scan(step, x, None, TIMES)[0]

    with jax.sharding.use_abstract_mesh(on.abstract_mesh):
        compiled = looped.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=rows)).compile()
    (one,) = analyze_program(compiled).collectives
    assert (one.kind, one.times) == ("all-reduce", TIMES)
    np.testing.assert_allclose(analyze_program(compiled).bytes_sent["all-reduce"], TIMES * 2 * 4 * 64 * 7 / 8)
