"""What we hand to people who run embedmill: container files, settings and documents say only what is there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from packaging.requirements import Requirement

from cli.__main__ import app
from engine.config import config_file
from engine.config.settings import CLIENT_NAMES, PREFIX, Settings

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.md")])
SETTINGS = {PREFIX + each.name.upper(): each for each in fields(Settings)}
# Read by tests and by .ci/run, never by the programs.
OF_TESTS = {f"{PREFIX}TEST_{name}_URL" for name in ("POSTGRES", "REDIS", "RABBITMQ")} | {
    f"{PREFIX}TEST_REQUIRE_SERVICES"
}
NAMES = set(SETTINGS) | {PREFIX + name for name in CLIENT_NAMES} | OF_TESTS
# What the Compose specification allows where we use it.
TOP_LEVEL = {"name", "services", "volumes"}
OF_A_SERVICE = {
    "build", "command", "depends_on", "env_file", "environment", "healthcheck", "image", "init", "ports", "restart",
    "stop_grace_period", "volumes",
}  # fmt: skip
CONDITIONS = {"service_started", "service_healthy", "service_completed_successfully"}
PIECES = {"migrate", "api", "worker", "scheduler"}


def commands() -> dict[str, Any]:
    """The commands of `embedmill` by name; a group has `commands` of its own."""
    found: Any = typer.main.get_command(app)
    return dict(found.commands)


def accepts(command: Any, arguments: list[str]) -> None:
    """Raises a usage error when the command would refuse the arguments; runs nothing."""
    command.make_context(command.name, list(arguments))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text("utf-8"))
    return loaded


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text("utf-8"))
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(word.upper(), rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_compose_has_the_pieces_and_only_keys_that_compose_knows(compose: dict[str, Any]) -> None:
    assert {key for key in compose if not key.startswith("x-")} <= TOP_LEVEL
    assert set(compose["services"]) == PIECES | {"postgres", "redis"}
    for name, service in compose["services"].items():
        assert set(service) <= OF_A_SERVICE, name


def test_compose_commands_exist(compose: dict[str, Any]) -> None:
    for name in PIECES:
        first, *rest = compose["services"][name]["command"]
        assert first == name
        accepts(commands()[first], rest)


def test_compose_names_only_known_settings_and_keeps_secrets_out(compose: dict[str, Any]) -> None:
    text = COMPOSE.read_text("utf-8")
    assert set(re.findall(rf"{PREFIX}[A-Z_]+", text)) <= set(SETTINGS)
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            assert isinstance(value, str), f"{name} must be quoted"
            if re.search(r"PASSWORD|PEPPER|AUTH", name):
                assert value.startswith("${"), f"{name} must come from the environment"
    assert re.findall(r"\$(?!\{|REDIS_PASSWORD)", text) == []


def test_compose_images_are_pinned(compose: dict[str, Any]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    for name, service in compose["services"].items():
        repository, _, tag = service["image"].rpartition(":")
        assert repository, name
        assert re.match(r"\d", tag), f"{name}: {tag}"
        assert name not in PIECES or tag == version


def test_compose_starts_things_in_order(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted["condition"] in CONDITIONS
            if wanted["condition"] == "service_healthy":
                assert "test" in services[other]["healthcheck"], f"{name} waits for {other}"
    assert services["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in PIECES - {"migrate"}:
        assert services[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert services[name]["depends_on"]["redis"]["condition"] == "service_healthy"
    # A one-off that is started again would migrate for ever.
    assert services["migrate"]["restart"] == "no"


def test_compose_declares_its_volumes_and_opens_one_loopback_port(compose: dict[str, Any]) -> None:
    named = {volume.split(":")[0] for each in compose["services"].values() for volume in each.get("volumes", [])}
    assert {name for name in named if not name.startswith(".")} == set(compose["volumes"])
    ports = [port for each in compose["services"].values() for port in each.get("ports", [])]
    assert ports == ["127.0.0.1:8080:8080"]


def test_the_broker_forgets_nothing(compose: dict[str, Any]) -> None:
    command = compose["services"]["redis"]["command"]
    assert all(isinstance(word, str) for word in command)
    assert command[command.index("--appendonly") + 1] == "yes"
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


def test_dockerfile_copies_what_there_is_and_all_that_is_needed(dockerfile: list[tuple[str, str]]) -> None:
    sources = {
        source
        for word, rest in dockerfile
        if word == "COPY" and not rest.startswith("--from=")
        for source in shlex.split(rest)[:-1]
    }
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    assert {name.split(".")[0] for name in packages} | {"alembic", "pyproject.toml"} <= sources
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    assert let_in == sources


def test_dockerfile_pins_python_and_runs_as_nobody_in_particular(dockerfile: list[tuple[str, str]]) -> None:
    bases = [rest.split()[0] for word, rest in dockerfile if word == "FROM"]
    assert len(bases) == 2
    assert all(re.fullmatch(r"python:3\.\d+-slim-\w+", base) for base in bases)
    final = dockerfile[max(i for i, (word, _) in enumerate(dockerfile) if word == "FROM") :]
    user = [rest for word, rest in final if word == "USER"]
    assert user
    assert user[-1] not in ("root", "0")
    assert any(word == "HEALTHCHECK" and "/healthz" in rest for word, rest in final)


def test_dockerfile_runs_a_command_that_exists(dockerfile: list[tuple[str, str]]) -> None:
    last = dict(dockerfile)
    assert yaml.safe_load(last["ENTRYPOINT"]) == ["embedmill"]
    first, *rest = yaml.safe_load(last["CMD"])
    accepts(commands()[first], rest)
    for word, rest_of_line in dockerfile:
        if word == "ENV":
            assert set(re.findall(rf"{PREFIX}[A-Z_]+", rest_of_line)) <= set(SETTINGS)


def test_env_example_repeats_every_setting() -> None:
    text = (ROOT / ".env.example").read_text("utf-8")
    defaults = Settings()
    for name, each in SETTINGS.items():
        wanted = f"# {each.metadata['doc']}\n# {name}={getattr(defaults, each.name)}\n"
        assert wanted in text, f".env.example must say:\n{wanted}"
    assert set(re.findall(rf"{PREFIX}[A-Z_]+(?==)", text)) == NAMES - OF_TESTS


def test_example_configuration_is_good() -> None:
    aliases = config_file.load(str(ROOT / "embedmill.example.toml"), {"OPENAI_API_KEY": "sk-example"})
    assert {"bge-m3", "text-embedding-prod", "openai/text-embedding-3-small", "local/wordllama-256"} <= set(aliases)


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)


def test_configurations_in_documents_are_good() -> None:
    texts = [document.read_text("utf-8") for document in DOCUMENTS]
    shown = [block for text in texts for language, block in code_blocks(text) if language == "toml"]
    assert len(shown) >= 4
    for block in shown:
        assert config_file.parse(tomllib.loads(block), {"OPENAI_API_KEY": "sk-example"})


def test_commands_in_documents_exist() -> None:
    known = commands()
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        spans = re.findall(r"`(embedmill [^`\n]+)`", text)
        for language, block in code_blocks(text):
            if language in ("", "sh"):
                spans += re.findall(r"^(?:docker compose exec api )?(embedmill .+)$", block, re.M)
        for span in spans:
            words = shlex.split(span.split(" #")[0].replace("…", ""))
            if len(words) < 2 or words[1].startswith("-"):
                continue
            command = known.get(words[1])
            assert command is not None, f"{document.name}: {span}"
            if hasattr(command, "commands") and len(words) > 2 and not words[2].startswith("-"):
                command = command.commands.get(words[2])
                assert command is not None, f"{document.name}: {span}"
            options = {name for each in command.params for name in each.opts}
            assert {word for word in words if word.startswith("--")} - options == set(), f"{document.name}: {span}"


def test_make_targets_in_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        named = set(re.findall(r"`make ([a-z-]+)`", text)) | set(re.findall(r"^make ([a-z-]+)", text, re.M))
        assert named <= targets, document


def test_settings_in_documents_exist() -> None:
    for document in DOCUMENTS:
        named = set(re.findall(rf"\b{PREFIX}(?!TEST_)[A-Z][A-Z_]*[A-Z]\b", document.read_text("utf-8")))
        assert named <= NAMES, document


def test_links_in_documents_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text("utf-8")):
            if not link.startswith(("http://", "https://")):
                assert (document.parent / link).exists(), f"{document.name}: {link}"


def test_what_ci_runs_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


LOCKS = ("requirements-build.lock", "requirements.lock", "requirements-dev.lock")


def locked(name: str) -> dict[str, str]:
    """Packages of a lock file and their versions. Fails on a package without an exact version and a hash."""
    text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = {}
    for line in lines:
        match = re.match(r"([a-z0-9][a-z0-9.\-]*)==([^\s;]+)", line)
        assert match, line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), f"{name}: {match[1]} has no hash"
        found[match[1]] = match[2]
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_locked_package_has_a_version_and_a_hash(name: str) -> None:
    assert len(locked(name)) >= 2


@pytest.mark.parametrize(("name", "extras"), [("requirements.lock", ()), ("requirements-dev.lock", ("dev",))])
def test_lock_files_hold_what_the_project_asks_for(name: str, extras: tuple[str, ...]) -> None:
    """`make lock` brings them up to date; this needs no network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    asked_for = [
        *project["dependencies"],
        *(each for extra in extras for each in project["optional-dependencies"][extra]),
    ]
    versions = locked(name)
    for text in asked_for:
        requirement = Requirement(text)
        assert requirement.name.lower() in versions, f"{requirement.name} is not locked: make lock"
        version = versions[requirement.name.lower()]
        assert requirement.specifier.contains(version), f"{text} is locked at {version}: make lock"


def test_everything_that_installs_uses_the_lock_files() -> None:
    """A release that appears tomorrow must not reach an image or a checkout by itself."""
    for name in ("Dockerfile", "Makefile"):
        text = (ROOT / name).read_text("utf-8").replace("\\\n", " ")
        installs = [line for line in text.splitlines() if "pip install" in line]
        assert installs, name
        for line in installs:
            assert "--require-hashes" in line or ("--no-deps" in line and "--no-build-isolation" in line), line


def test_a_wheel_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    """Its packages (`api`, `models`, …) would collide with others; an editable install is what `make install` does."""
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tmp_path)
    for package in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]:
        (tmp_path / package.replace(".", "/")).mkdir(parents=True)
    build = [sys.executable, "setup.py", "-q", "bdist_wheel"]
    ran = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "make install" in ran.stderr
    assert not list(tmp_path.glob("dist/*.whl"))
