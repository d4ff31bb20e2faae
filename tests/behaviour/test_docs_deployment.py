"""The files of the deployment guide: nginx, systemd, the container, Kubernetes, Grafana.

The tests of nginx, systemd and the image are skipped where these programs do not exist, also in CI.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import site
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml
from openai import AsyncOpenAI, DefaultAsyncHttpxClient
from websockets.asyncio.client import connect

from tests.behaviour.chat_client import user
from tests.fakes.certificates import make_certificate
from tests.fakes.upstream import FakeUpstream, text
from tests.polling import until
from tests.server import Served, free_port, serve

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "deployment"
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
SYSTEMD = shutil.which("systemd-analyze")


# --- nginx ---


@asynccontextmanager
async def nginx(folder: Path, served: Served) -> AsyncIterator[tuple[str, ssl.SSLContext]]:
    """Run nginx with the configuration of the guide, on a free port, in front of the server."""
    assert NGINX is not None
    certificate, key = make_certificate(folder)
    port = free_port()
    changes = {
        "127.0.0.1:8000": served.url.removeprefix("http://"),
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
        "/etc/ssl/agents.example.com.crt": str(certificate),
        "/etc/ssl/agents.example.com.key": str(key),
    }
    configuration = (FOLDER / "nginx.conf").read_text()
    for old, new in changes.items():
        assert old in configuration
        configuration = configuration.replace(old, new)
    (folder / "nginx.conf").write_text(configuration)
    (folder / "logs").mkdir()
    process = await asyncio.create_subprocess_exec(
        NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log"),
        "-g", f"daemon off; pid {folder}/nginx.pid;",
    )  # fmt: skip
    try:
        await until((folder / "nginx.pid").exists)
        await until(lambda: (folder / "nginx.pid").read_text())
        yield f"127.0.0.1:{port}", ssl.create_default_context(cafile=str(certificate))
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
async def test_nginx_passes_streams_at_once_and_websockets_and_errors(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    released = asyncio.Event()
    upstream.reply(text("Hello, world", chunks=["Hello, ", released, "world"]))
    async with (
        serve(tmp_path, upstream.base_url, metrics=True, max_body_bytes=20_000) as served,
        nginx(tmp_path, served) as (place, trust),
        AsyncOpenAI(
            base_url=f"https://{place}/v1", api_key="any", http_client=DefaultAsyncHttpxClient(verify=trust)
        ) as client,
    ):
        stream = await client.chat.completions.create(model="shop", messages=[user("Hi")], stream=True)
        texts = ""
        async for chunk in stream:
            texts += "".join(choice.delta.content or "" for choice in chunk.choices)
            if texts:
                # The provider sends the rest only after the first words have arrived here.
                released.set()

        async with connect(f"wss://{place}/v1/ws", ssl=trust) as socket:
            await socket.send("{}")
            answer = json.loads(await socket.recv())

        async with httpx2.AsyncClient(verify=trust) as plain:
            hidden = await plain.get(f"https://{place}/metrics")
            large = await plain.post(f"https://{place}/v1/chat/completions", content=b"x" * 100_000)

    assert texts == "Hello, world"
    assert answer["type"] == "error"
    assert hidden.status_code == 404
    assert (large.status_code, list(large.json())) == (413, ["error"])


# --- systemd, Kubernetes, Grafana ---


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    assert SYSTEMD is not None
    unit = (FOLDER / "handoff-proxy.service").read_text()
    file = tmp_path / "handoff-proxy.service"
    file.write_text(unit.replace("/opt/handoff-proxy/bin/handoff-proxy", sys.executable))

    verified = subprocess.run([SYSTEMD, "verify", str(file)], capture_output=True, text=True, check=False)

    about = [line for line in (verified.stdout + verified.stderr).splitlines() if file.name in line]
    assert about == []


def test_kubernetes_manifests_match_the_schemas() -> None:
    manifests = list(yaml.safe_load_all((FOLDER / "kubernetes.yaml").read_text()))

    for manifest in manifests:
        kubernetes_validate.validate(manifest, "1.34", strict=True)
    assert [manifest["kind"] for manifest in manifests] == [
        "Job",
        "Deployment",
        "Service",
        "PodDisruptionBudget",
    ]


async def test_the_dashboard_shows_every_metric_of_the_server_and_no_other(tmp_path: Path) -> None:
    async with serve(tmp_path, metrics=True) as served, httpx2.AsyncClient() as client:
        await served.client().chat.completions.create(model="assistant", messages=[user("What time is it?")])
        exposition = (await client.get(f"{served.url}/metrics")).text
    names = set(re.findall(r"^# TYPE (\S+) ", exposition, re.MULTILINE))
    served_names = {name for name in names if not name.endswith("_created")}

    dashboard = json.loads((FOLDER / "grafana.json").read_text())

    expressions = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    shown = set(re.findall(r"\b([a-z_]+)\{", expressions))
    assert {name.removesuffix("_bucket") for name in shown} == served_names


# --- the container ---


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Containerfile with their arguments."""
    lines = (FOLDER / "Containerfile").read_text().splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines) if name and name != "#"]


def test_the_container_runs_without_root() -> None:
    users = [rest for name, rest in instructions() if name == "USER"]

    assert users == ["10001"]


def health_check() -> list[str]:
    (check,) = [
        json.loads(rest.partition(" CMD ")[2]) for name, rest in instructions() if name == "HEALTHCHECK"
    ]
    return [*check]


async def test_the_container_is_healthy_with_a_certificate_too(
    tmp_path: Path, upstream: FakeUpstream
) -> None:
    certificate, key = make_certificate(tmp_path, name="agents.example.com")
    async with serve(tmp_path, upstream.base_url, tls_certificate=certificate, tls_key=key) as served:
        variables = {
            "PATH": os.environ["PATH"],
            "PROXY_PORT": served.url.rpartition(":")[2],
            "PROXY_TLS_CERTIFICATE": str(certificate),
        }
        # On a busy machine one check can take longer than its limit.
        async with asyncio.timeout(30):
            while await _run(*health_check(), env=variables) != 0:
                pass


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """Run the steps of the container's first stage in an empty folder; return where the server is installed."""
    source, prefix = tmp_path / "src", tmp_path / "handoff-proxy"
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ignored = tuple((ROOT / ".dockerignore").read_text().split())
    for name in listed.splitlines():
        if not name.startswith(tuple(f"{entry}/" for entry in ignored)):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    # The libraries of the page are downloaded in another test.
    shutil.copytree(
        ROOT / "proxy" / "web" / "vendor", source / "proxy" / "web" / "vendor", dirs_exist_ok=True
    )
    first, *others = [
        rest.replace("/opt/handoff-proxy", str(prefix))
        for name, rest in instructions()
        if name == "RUN" and "useradd" not in rest
    ]

    # The environment of the tests has pip and the locked packages: pip finds them, and downloads nothing.
    subprocess.run(f"{first} --without-pip", shell=True, cwd=source, check=True)
    packages = next(prefix.glob("lib/python*/site-packages"))
    (packages / "tests.pth").write_text("\n".join(site.getsitepackages()))
    for step in others:
        subprocess.run(step, shell=True, cwd=source, check=True, capture_output=True)
    return prefix


@pytest.mark.timeout(300)
async def test_the_steps_of_the_container_build_a_server_that_becomes_healthy(
    tmp_path: Path, prefix: Path
) -> None:
    data = tmp_path / "data"
    environment = {name: rest for name, _, rest in (pair.partition("=") for pair in pairs("ENV"))}
    port = str(free_port())
    variables = {
        **environment,
        "PATH": f"{prefix}/bin:{os.environ['PATH']}",
        "PROXY_DATA_DIR": str(data),
        "PROXY_API_KEYS": "change-me",
        "PROXY_PORT": port,
    }
    data.mkdir()
    (entry,) = [json.loads(rest) for name, rest in instructions() if name == "ENTRYPOINT"]
    (arguments,) = [json.loads(rest) for name, rest in instructions() if name == "CMD"]
    check = health_check()
    server = await asyncio.create_subprocess_exec(
        f"{prefix}/bin/{entry[0]}", *arguments, cwd=data, env=variables, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            await until(lambda: _listens(int(port)), within=30)
            while await _run(*check, cwd=data, env=variables) != 0:
                assert server.returncode is None
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="change-me") as client:
            models = [model.id async for model in await client.models.list()]
        async with httpx2.AsyncClient() as plain:
            page = await plain.get(f"http://127.0.0.1:{port}/")
    finally:
        server.terminate()
        await server.wait()

    assert "acme-support" in models
    assert "<title>" in page.text
    assert (prefix / "bin" / "handoff-proxy").exists()


def container_engine() -> str | None:
    """Return the first container engine that works here; the client of Docker is installed without a daemon too."""
    for name in ("podman", "docker", "buildah"):
        path = shutil.which(name)
        if path and subprocess.run([path, "info"], capture_output=True, check=False).returncode == 0:
            return path
    return None


@pytest.mark.timeout(900)
async def test_the_commands_of_the_guide_build_an_image_and_run_it() -> None:
    engine = container_engine()
    if engine is None:
        pytest.skip("no container engine works here: podman, docker or buildah")
    guide = (FOLDER / "README.md").read_text()
    (build,) = re.findall(r"^podman (build .*)$", guide, re.MULTILINE)
    (run,) = re.findall(r"^podman (run .*)$", guide, re.MULTILINE)
    image = f"handoff-proxy-test-{os.getpid()}"
    port = free_port()
    assert await _run(engine, *build.replace("-t handoff-proxy", f"-t {image}").split(), cwd=ROOT) == 0
    try:
        # Buildah only builds.
        if Path(engine).name != "buildah":
            command = run.replace("8000:8000", f"127.0.0.1:{port}:8000").replace(
                "handoff-proxy:/data", f"{image}:/data"
            )
            options = command.split()[1:-1]
            assert await _run(engine, "run", "--detach", "--name", image, *options, image) == 0
            async with asyncio.timeout(60), httpx2.AsyncClient() as client:
                while not await _is_ready(client, f"http://127.0.0.1:{port}/health/ready"):
                    await asyncio.sleep(0.1)
    finally:
        if Path(engine).name != "buildah":
            await _run(engine, "rm", "--force", image)
            await _run(engine, "volume", "rm", "--force", image)
        await _run(engine, "rmi", image)


async def _is_ready(client: httpx2.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == 200
    except httpx2.TransportError:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as connecting:
        return connecting.connect_ex(("127.0.0.1", port)) == 0


def pairs(instruction: str) -> list[str]:
    return [pair for name, rest in instructions() if name == instruction for pair in rest.split()]


async def _run(*command: str, **options: Any) -> int:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.DEVNULL, **options)
    return await process.wait()
