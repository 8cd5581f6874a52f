"""The workflow file is valid, and runs the Python versions and commands that the project promises."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_recall._lightning import ENVIRONMENT_VARIABLE, PACKAGES

ROOT = Path(__file__).parent.parent
WORKFLOW = ROOT / ".github" / "workflows" / "tests.yml"


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load(WORKFLOW.read_text())["jobs"]


@pytest.fixture(scope="module")
def versions(jobs):
    """The Python versions of the tests."""
    return jobs["tests"]["strategy"]["matrix"]["python"]


@pytest.fixture(scope="module")
def setup():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def commands(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def python_version(job):
    (version,) = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    return version


def test_the_workflow_is_valid():
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", WORKFLOW]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_its_versions_are_those_of_the_classifiers(versions, setup):
    classifiers = setup["metadata"]["classifiers"]
    assert versions == re.findall(r"^Programming Language :: Python :: (3\.\d+)$", classifiers, re.MULTILINE)
    minors = [int(version.removeprefix("3.")) for version in versions]
    assert minors == list(range(minors[0], minors[-1] + 1))


def test_its_first_version_is_the_oldest_that_pip_installs_on(versions, setup):
    assert setup["options"]["python_requires"] == f">={versions[0]}"
    pyproject = (ROOT / "pyproject.toml").read_text()
    assert f'target-version = "py{versions[0].replace(".", "")}"' in pyproject


def test_readme_names_its_versions(versions):
    assert f"Python {versions[0]} to {versions[-1]}" in (ROOT / "README.md").read_text()


def test_the_oldest_releases_run_on_the_oldest_version(jobs, versions):
    assert python_version(jobs["oldest"]) == versions[0]
    makefile = (ROOT / "Makefile").read_text()
    assert f"--python {versions[0]} " in makefile
    assert f"on Python {versions[0]}" in makefile


def test_both_lightning_packages_are_tested(jobs):
    job = jobs["tests"]
    assert job["env"] == {ENVIRONMENT_VARIABLE: "${{ matrix.lightning }}"}
    matrix = job["strategy"]["matrix"]
    assert matrix["lightning"] == list(PACKAGES)  # each with every version of Python
    assert set(matrix) == {"python", "lightning"}
    assert python_version(job) == "${{ matrix.python }}"


def test_it_runs_the_commands_of_the_readme(jobs):
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    (test,), (oldest,) = commands(jobs["tests"]), commands(jobs["oldest"])
    assert test == "make test PYTHON=python"
    assert "make test" in readme
    assert oldest == "make test-oldest PYTHON=python"
    assert {"test", "test-oldest"} <= set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
