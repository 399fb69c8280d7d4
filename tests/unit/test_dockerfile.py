"""The images of the Dockerfile: each holds its service's code, whatever that imports, and nothing else."""

import re
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = PROJECT["tool"]["setuptools"]["packages"]["find"]["where"]
PACKAGES = {package.parent.name: folder for folder in FOLDERS for package in (ROOT / folder).glob("*/__init__.py")}
SERVICES = sorted(name.removeprefix("heimdex-") for name in PROJECT["project"]["scripts"] if name != "heimdex")


def stages() -> dict[str, tuple[str, str]]:
    """Each named stage of the Dockerfile: the stage or image that it is built from, and its instructions."""
    parts = re.split(r"^FROM (\S+)(?: AS (\S+))?$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return {name: (base, text) for base, name, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True) if name}


def copied(stage: str) -> set[str]:
    """The folders of ours that a stage, and those that it is built from, copy from the repository."""
    folders: set[str] = set()
    while stage in stages():
        stage, instructions = stages()[stage]
        folders |= {source for source in re.findall(r"^COPY (\S+)", instructions, re.MULTILINE) if source in FOLDERS}
    return folders


def test_an_image_can_be_built_of_every_service() -> None:
    assert {name.removeprefix("code-") for name in stages() if name.startswith("code-")} == set(SERVICES)
    for service in SERVICES:
        assert f'ENTRYPOINT ["heimdex-{service}"]' in stages()[service][1]
    assert set(SERVICES) <= PROJECT["project"]["optional-dependencies"].keys()


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_holds_the_packages_that_its_service_imports(service: str) -> None:
    imports = grimp.build_graph(*PACKAGES, cache_dir=None)
    package = f"heimdex_{service.replace('-', '_')}"
    modules = imports.find_upstream_modules(package, as_package=True)
    # Every service imports the declarations of pipelines, whose authors import `heimdex`.
    ours = {PACKAGES[module.partition(".")[0]] for module in modules} | {PACKAGES[package], PACKAGES["heimdex"]}
    assert copied(f"code-{service}") == ours


def test_the_builder_receives_what_the_images_hold() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    held = set().union(*(copied(f"code-{service}") for service in SERVICES))
    assert sent == held | {"pyproject.toml", "constraints.txt"}


def test_every_service_of_compose_names_an_image_of_the_dockerfile() -> None:
    built = re.findall(r"build: \{context: \., args: \{SERVICE: (\S+)\}\}", (ROOT / "compose.yaml").read_text())
    assert sorted(built) == SERVICES
