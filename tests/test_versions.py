"""What is declared about versions agrees: pyproject, constraints, conda's environment, Makefile, nox."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
DECLARED = {
    "the library itself": [Requirement(text) for text in PROJECT["dependencies"]],
    **{extra: [Requirement(text) for text in texts] for extra, texts in EXTRAS.items()},
}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, version in (x.split("==") for x in lines if "==" in x)}


def lowest_module():
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("extra", DECLARED)
def test_the_measured_versions_are_within_the_declared_ranges(extra):
    pins = pinned()
    for requirement in DECLARED[extra]:
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), (str(requirement), version)


def test_conda_and_pip_install_the_same():
    """environment.yml asks for every extra, and takes ranges and versions from where pip takes them."""
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    (python,) = [entry for entry in dependencies if isinstance(entry, str) and entry.startswith("python")]
    lowest = python.removeprefix("python=")
    assert SpecifierSet(PROJECT["requires-python"]).contains(lowest)
    assert PROJECT["requires-python"] == f">={lowest}"
    assert [entry for entry in dependencies if isinstance(entry, str)] == [python, "pip"]  # no second list of packages
    (pip,) = [entry["pip"] for entry in dependencies if isinstance(entry, dict)]
    (editable,) = [line for line in pip if line.startswith("-e ")]
    assert set(re.search(r"\[(.*)\]", editable).group(1).split(",")) == set(EXTRAS)
    assert "-c constraints.txt" in pip
    assert len(pip) == 2


def test_the_makefile_installs_every_extra_and_the_engine_only_for_campaigns():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installed = [set(extras.split(",")) for extras in re.findall(r"-c constraints.txt -e '\.\[(.*)\]'", makefile)]
    assert installed == [set(EXTRAS) - {"campaign"}, {"campaign"}]


def test_nox_runs_every_python_from_the_lowest_and_installs_what_make_setup_does():
    nox = (ROOT / "noxfile.py").read_text(encoding="utf-8")
    assert f'EXTRAS = ".[{",".join(extra for extra in EXTRAS if extra != "campaign")}]"' in nox
    assert f'python=["{PROJECT["requires-python"].removeprefix(">=")}", ' in nox
    exact = re.search(r"^EXACT = \((.*)\)$", nox, re.MULTILINE).group(1)
    assert all((ROOT / "tests" / name).is_file() for name in re.findall(r'"(.*?)"', exact))


def test_the_lowest_versions_are_those_that_are_declared():
    bounds = lowest_module().lowest()
    assert {canonicalize_name(name) for name in bounds} == {
        canonicalize_name(requirement.name) for requirements in DECLARED.values() for requirement in requirements
    }
    for requirements in DECLARED.values():
        for requirement in requirements:
            assert requirement.specifier.contains(bounds[requirement.name])
    assert bounds["torch"] == re.search(r"torch>=([\d.]+)", " ".join(PROJECT["dependencies"])).group(1)


def test_of_two_lower_bounds_the_higher_one_counts_and_a_missing_one_is_named(tmp_path):
    path = tmp_path / "pyproject.toml"
    declared = (
        '[project]\ndependencies = ["a>=1.9,<3"]\n[project.optional-dependencies]\none = ["a>=1.10"]\ntwo = [{}]\n'
    )
    path.write_text(declared.format('"b>=2"'))
    assert lowest_module().lowest(path) == {"a": "1.10", "b": "2"}
    path.write_text(declared.format('"b<2"'))
    with pytest.raises(ValueError, match="asks for 'b<2': give it one lower bound"):
        lowest_module().lowest(path)
