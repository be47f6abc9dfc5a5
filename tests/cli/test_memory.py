"""The command's memory is in large pages."""

import os
import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from kd_jax.cli.memory import NAME, with_large_pages

# As `python -m kd_jax`, with a look at the environment at the end.
COMMAND = """
import os
import kd_jax.cli.entry
import kd_jax.cli.main

kd_jax.cli.main.main = lambda words: print(os.environ["{}"], words) or 0
kd_jax.cli.entry.entry()
"""


def variables(**changes):
    return {name: text for name, text in os.environ.items() if name != NAME} | changes


def test_the_command_starts_again_with_large_pages_and_the_same_words():
    command = [sys.executable, "-c", COMMAND.format(NAME), "plan", "a b"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables())
    assert done.stdout == "glibc.malloc.hugetlb=1 ['plan', 'a b']\n"


def test_what_the_user_said_stays():
    given_ = "glibc.malloc.check=0:glibc.malloc.hugetlb=0"
    command = [sys.executable, "-c", COMMAND.format(NAME)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables(GLIBC_TUNABLES=given_))
    assert done.stdout == f"{given_} []\n"


@given(st.dictionaries(st.text(), st.text()), st.one_of(st.none(), st.text(alphabet="glibc.malloc:=1", max_size=30)))
def test_asked_once_is_enough(environment, settings):
    environment = environment | ({NAME: settings} if settings is not None else {})
    once = with_large_pages(environment)
    assert with_large_pages(once) == once
    assert {name: text for name, text in once.items() if name != NAME}.items() <= environment.items()
