"""Each case runs in a process of its own, because the setting holds until a process ends."""

import os
import shutil
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the setting is glibc's")
PAGES_OF_64_MIB = 2**26 // os.sysconf("SC_PAGE_SIZE")
SCRIPT = """
import resource
import torch
import lightning_recall
from lightning_recall.memory_allocation import keep_freed_memory
{call}
for _ in range(30):  # glibc before 2.38 needs several rounds until a freed block fits an aligned tensor
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(2**24) for _ in range(2)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call="print(keep_freed_memory())", **variables):
    """What `call` prints, and the page faults of two tensors of 64 MiB after tensors of that size were freed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    code = SCRIPT.format(call=call)
    run = subprocess.run(
        [sys.executable, "-c", code], env={**environment, **variables}, capture_output=True, text=True, check=True
    )
    *printed, faults = run.stdout.split()
    return printed, int(faults)


def test_freed_memory_is_used_again():
    printed, faults = page_faults()
    assert printed == ["True"]
    assert faults < PAGES_OF_64_MIB / 10


def test_importing_the_package_changes_nothing():
    _, faults = page_faults("")
    assert faults > PAGES_OF_64_MIB / 10


@pytest.mark.parametrize(
    "variable",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_MMAP_THRESHOLD_": "131072"},
        {"GLIBC_TUNABLES": "glibc.malloc.top_pad=131072"},
    ],
    ids=str,
)
def test_own_settings_stay(variable):
    printed, faults = page_faults(**variable)
    assert printed == ["False"]
    assert faults > PAGES_OF_64_MIB / 10


def test_other_variables_do_not_count_as_own_settings():
    assert page_faults(MALLOC_ARENA_MAX="2", GLIBC_TUNABLES="glibc.rtld.nns=4")[0] == ["True"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler, for an allocator to preload")
def test_a_preloaded_allocator_stays(tmp_path):
    source, library = tmp_path / "allocator.c", tmp_path / "allocator.so"
    source.write_text("void *__libc_malloc(unsigned long);\nvoid *malloc(unsigned long n) {return __libc_malloc(n);}")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert page_faults(LD_PRELOAD=str(library))[0] == ["False"]


def test_worker_processes_forked_afterwards_inherit_it():
    call = """
keep_freed_memory()
import os
if os.fork():
    os.wait()
    raise SystemExit
"""
    assert page_faults(call)[1] < PAGES_OF_64_MIB / 10


def test_the_command_calls_it(monkeypatch):
    from lightning_recall.cli import command, console

    called = []
    monkeypatch.setattr("sys.argv", ["lightning-recall", "fit"])
    monkeypatch.setattr(console, "keep_freed_memory", lambda: called.append("allocation"))
    monkeypatch.setattr(command, "execute", lambda: called.append("run"))
    console.run()
    assert called == ["allocation", "run"]
