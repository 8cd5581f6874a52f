"""The script for SLURM in docs/how_to/clusters.md, with stand-ins for `srun` and `scontrol`."""

import os
import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "how_to" / "clusters.md"


@pytest.fixture
def submit(tmp_path):
    """Runs the script; returns its exit code and the lines that srun and scontrol got.

    The stand-in for srun writes the checkpoint of that name, unless it is "", and exits with the code.
    """
    (script,) = re.findall(r"```bash\n(#!/bin/bash.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "job.sh").write_text(script)
    programs = {"srun": '[ -z "$CHECKPOINT" ] || touch "$CHECKPOINT"\nexit "$CODE"', "scontrol": ""}
    for name, code in programs.items():
        program = tmp_path / name
        program.write_text(f'#!/bin/bash\necho "{name} $@" >> called\n{code}\n')
        program.chmod(0o755)

    def run(checkpoint="", code=0):
        folder = tmp_path / "runs" / "glyphs" / "version_0" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / "called").unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_NNODES": "2"}
        environment |= {"SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_ID": "17", "CODE": str(code)}
        environment["CHECKPOINT"] = str(folder / checkpoint) if checkpoint else ""
        ended = subprocess.run(["bash", "job.sh"], cwd=tmp_path, env=environment, check=False)
        return ended.returncode, (tmp_path / "called").read_text().splitlines()

    return run


def age(path):
    """Makes a file of an earlier job as old as it would be."""
    os.utime(path, (1, 1))


def test_a_job_that_ends_is_not_requeued(submit):
    code, (srun,) = submit("last.ckpt")
    assert code == 0
    assert srun.endswith("--trainer.num_nodes 2 --trainer.devices 4 --trainer.strategy ddp")


def test_an_interrupted_job_is_requeued_and_resumes(submit, tmp_path):
    code, (_, scontrol) = submit("interrupted.ckpt", code=1)
    assert code == 1
    assert scontrol == "scontrol requeue 17"
    age(tmp_path / "runs/glyphs/version_0/checkpoints/interrupted.ckpt")
    code, (srun,) = submit("last.ckpt")
    assert code == 0
    assert srun.endswith("--ckpt_path runs/glyphs/version_0/checkpoints/interrupted.ckpt")


def test_a_job_that_fails_is_not_requeued(submit, tmp_path):
    submit("interrupted.ckpt", code=1)
    age(tmp_path / "runs/glyphs/version_0/checkpoints/interrupted.ckpt")
    code, called = submit(code=1)  # an error, with the checkpoint of the earlier job still there
    assert code == 1
    assert len(called) == 1
