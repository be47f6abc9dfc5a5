"""Large memory pages for the process, which CPU training is faster with."""

from collections.abc import Mapping

# A setting of the C library (glibc 2.35 or later), read when a process starts; other systems ignore it.
SETTING, NAME = "glibc.malloc.hugetlb", "GLIBC_TUNABLES"


def with_large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with large pages switched on, unless it sets them already.

    On CPU, XLA allocates the temporary memory of a step anew at every step, and Linux zeroes it page by page: 106,000
    pages of 4 KiB, a tenth of the step's time for the teacher of experiments/configs/debian_lm.py.
    """
    settings = [part for part in environment.get(NAME, "").split(":") if part]
    if not any(part.startswith(SETTING) for part in settings):
        settings.append(f"{SETTING}=1")
    return {**environment, NAME: ":".join(settings)}
