"""The process's memory: in large pages."""

from collections.abc import Mapping

# Of the C library, version 2.35 or later; read when a process starts. Others ignore it.
SETTING, NAME = "glibc.malloc.hugetlb", "GLIBC_TUNABLES"


def with_large_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which the C library asks Linux for large pages; unchanged where it says anything of them.

    On CPU, XLA allocates a step's temporary memory anew at every step, and the system hands it out, zeroed, page by
    page: 106,000 pages of 4 KiB, a tenth of the step of experiments/configs/debian_lm.py's teacher. Keeping what was
    freed instead (mallopt) is no faster, and takes up to four times the memory, in fragments.

    Examples:
      >>> with_large_pages({"HOME": "/root"})
      {'HOME': '/root', 'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
      >>> with_large_pages({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"})
      {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=0'}
    """
    settings = [part for part in environment.get(NAME, "").split(":") if part]
    if not any(part.startswith(SETTING) for part in settings):
        settings.append(f"{SETTING}=1")
    return {**environment, NAME: ":".join(settings)}
