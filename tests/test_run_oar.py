"""run_oar.sh with a python that only notes how it was called: no OAR, no training."""

import shutil
import subprocess
from pathlib import Path

import pytest
from child_processes import ROOT

JOB = 999_000_001
PYTHON = '#!/bin/bash\nprintf "%s\\n" "$@" >> calls.txt\nenv >> variables.txt\nexit 1\n'
OARSH = '#!/bin/bash\nexec env -i PATH="$PATH" bash -c "$2"\n'  # another node: it inherits nothing


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The folder of a job whose python fails at once."""
    shutil.copy(ROOT / "run_oar.sh", tmp_path)
    for program, text in ((".venv/bin/python", PYTHON), ("bin/oarsh", OARSH)):
        file = tmp_path / program
        file.parent.mkdir(parents=True)
        file.write_text(text)
        file.chmod(0o755)
    (tmp_path / "nodes").write_text("here\nhere\n")
    return tmp_path


def run_job(job: Path, *flags: str, gpus: int, **variables: str) -> tuple[int, str]:
    """Exit code and log of `run_oar.sh run FLAGS`, so many GPUs on its first node."""
    rows = [f"gpudevice = '{number}'" for number in range(gpus)] or ["core = '0'"]
    lines = [f"network_address = 'here' , {row}\n" for row in rows]
    (job / "resources").write_text("".join(lines))
    environment = {"PATH": f"{job / 'bin'}:/usr/bin:/bin", "OAR_JOB_ID": str(JOB)} | variables
    environment["OAR_NODEFILE"] = str(job / "nodes")
    environment["OAR_RESOURCE_PROPERTIES_FILE"] = str(job / "resources")
    command = ["bash", "run_oar.sh", "run", *flags]
    done = subprocess.run(command, cwd=job, env=environment, timeout=60, check=False)
    return done.returncode, (job / f"run/log.{JOB}.txt").read_text()


def test_a_job_that_fails_is_not_submitted_again_for_the_marker_of_the_job_before(job: Path):
    (job / "run").mkdir()
    (job / "run/interrupted").touch()
    code, log = run_job(job, gpus=0)
    assert code == 1
    assert "failed with exit code 1" in log and "again" not in log
    assert (job / "calls.txt").exists()


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_job_with_gpus_asks_for_them_unless_the_flags_say_other(job: Path, gpus: int):
    run_job(job, "--device", "cpu", gpus=gpus)
    words = (job / "calls.txt").read_text().splitlines()
    assert f"--nproc-per-node={max(1, gpus)}" in words
    devices = [words[i + 1] for i, word in enumerate(words) if word == "--device"]
    assert devices == (["cuda", "cpu"] if gpus else ["cpu"])  # the last one counts
    assert words[-3:] == ["--out", "run", "--resume"]


def test_settings_of_nccl_reach_every_node(job: Path):
    (job / "nodes").write_text("here\nthere\n")
    run_job(job, gpus=0, NCCL_DEBUG="INFO", GLOO_SOCKET_IFNAME="ib0", SECRET="of the first node")
    variables = (job / "variables.txt").read_text().splitlines()
    assert variables.count("NCCL_DEBUG=INFO") == variables.count("GLOO_SOCKET_IFNAME=ib0") == 2
    assert variables.count("SECRET=of the first node") == 1
