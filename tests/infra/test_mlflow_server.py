"""MLflow as infra/mlflow sets it up: PostgreSQL, SeaweedFS, logins; all real. Backed up, dropped, restored.

Needs PostgreSQL, `weed` on PATH or in DGUNET_TEST_TOOLS, and the packages of `mlflow[auth]` and psycopg 3 in the folder
DGUNET_TEST_PACKAGES, as .ci/run installs them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import boto3
import mlflow
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from factories import PROJECT
from processes import until

from dgunet.checkpoint import save_model
from dgunet.config import WEIGHTS_FILE, DGUNetConfig
from dgunet.hub.registry import pull
from dgunet.network import DGUNet
from pipeline.tracking import registry, runs

POSTGRES = next((path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
TOOLS = os.pathsep.join([os.environ.get("DGUNET_TEST_TOOLS", ""), os.environ["PATH"]]).strip(os.pathsep)
WEED = shutil.which("weed", path=TOOLS)
PACKAGES = os.environ.get("DGUNET_TEST_PACKAGES", "")
missing = [
    name
    for name, found in {
        "PostgreSQL": POSTGRES, "weed": WEED, "DGUNET_TEST_PACKAGES": PACKAGES, "root": os.geteuid() == 0
    }.items()
    if not found
]  # fmt: skip
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}"),
]
ADMIN, PASSWORD = "admin", "of-the-tests-0123"
KEYS = {"AWS_ACCESS_KEY_ID": "key-of-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests"}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_pairs(count: int) -> list[int]:
    """Different ports that are free, as are those 10,000 above them, on which SeaweedFS speaks gRPC."""
    found: list[int] = []
    for number in random.sample(range(18_000, 28_000), 10_000):
        with suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", number))
            second.bind(("127.0.0.1", number + 10_000))
            found.append(number)
        if len(found) == count:
            break
    return found


class Servers:
    """PostgreSQL, SeaweedFS and MLflow on this machine."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.s3, *self.others = free_pairs(4)
        self.mlflow = free_port()
        self.variables = {
            "PATH": f"{Path(sys.executable).parent}:{POSTGRES}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHONPATH": PACKAGES,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(free_port()),
            "PGUSER": "postgres",
            **KEYS,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.s3}",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_AUTH_ADMIN_USERNAME": ADMIN,
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
            "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow/artifacts",
            "MLFLOW_AUTH_CONFIG_PATH": str(PROJECT / "infra" / "mlflow" / "basic_auth.ini"),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.mlflow}"

    def run(self, *command: str) -> str:
        """Run a command with the variables of the servers; return what it prints."""
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def serve(self, name: str, *command: str, user: int | None = None) -> subprocess.Popen[bytes]:
        """Start a server; it is killed, with its child processes, at the end."""
        with (self.folder / f"{name}.log").open("w") as log:
            server = subprocess.Popen(
                command, env=self.variables, stdout=log, stderr=log, start_new_session=True, user=user, cwd=self.folder
            )

        def stop() -> None:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM if user else signal.SIGKILL)
            server.wait(60)

        self.stack.callback(stop)
        return server

    def start_database(self) -> None:
        """Make a database cluster, which PostgreSQL does not let root do, and the two databases."""
        data = self.folder / "data"
        data.mkdir()
        shutil.chown(data, "postgres")
        user = data.stat().st_uid
        make = [f"{POSTGRES}/initdb", "--auth=trust", "--no-sync", "--pgdata", str(data)]
        subprocess.run(make, user=user, check=True, capture_output=True, cwd=self.folder)
        settings = ["listen_addresses=127.0.0.1", f"port={self.variables['PGPORT']}", f"unix_socket_directories={data}"]
        options = [part for setting in [*settings, "fsync=off"] for part in ("-c", setting)]
        self.serve("postgres", f"{POSTGRES}/postgres", "-D", str(data), *options, user=user)
        ready = [f"{POSTGRES}/pg_isready", "--quiet"]
        until(lambda: subprocess.run(ready, env=self.variables, check=False).returncode == 0, 60)
        for name in ("mlflow", "mlflow_auth"):
            self.run("createdb", name)

    def start_storage(self) -> None:
        """Start SeaweedFS with keys, and make the bucket."""
        objects = self.folder / "objects"
        objects.mkdir()
        names = ("master.port", "volume.port", "filer.port")
        addresses = [f"-{name}={port}" for name, port in zip(names, self.others, strict=True)]
        # Its catalogs listen on fixed ports and end it where one is taken; 0 leaves them out.
        addresses += [f"-s3.port={self.s3}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        server = self.serve(
            "weed", str(WEED), "server", f"-dir={objects}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *addresses,
            "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=0", "-s3",
            "-s3.autoCreateBucket=false",
        )  # fmt: skip
        client = self.storage_client()

        def make_bucket() -> bool:
            assert server.poll() is None, (self.folder / "weed.log").read_text()[-3000:]
            try:
                client.create_bucket(Bucket="mlflow")
            except client.exceptions.BucketAlreadyOwnedByYou:  # made by a request whose answer came too late
                return True
            except (BotoCoreError, ClientError) as error:  # it does not listen yet, or has no volume yet
                print(error)  # pytest shows it if this goes on
                return False
            return True

        until(make_bucket, 240)
        client.close()

    def storage_client(self) -> Any:
        """Return a client of the storage; boto3.client itself would use the keys of its first call in this process."""
        session = boto3.Session(**{name.lower(): value for name, value in KEYS.items()}, region_name="us-east-1")
        once = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
        return session.client("s3", endpoint_url=self.variables["AWS_ENDPOINT_URL"], config=once)

    def start_mlflow(self) -> None:
        """Start MLflow with the arguments of values.yaml, but for its address."""
        values = yaml.safe_load((PROJECT / "infra" / "mlflow" / "values.yaml").read_text())
        options = values["server"]["value_options"] | {
            "host": "127.0.0.1", "port": self.mlflow, "workers": 1, "allowed_hosts": f"127.0.0.1:{self.mlflow}"
        }  # fmt: skip
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        arguments += [f"--{name.replace('_', '-')}" for name in values["server"]["flag_options"]]
        arguments += [f"--backend-store-uri={values['mlflow']['backendStoreUri']}"]
        arguments += [f"--artifacts-destination={values['mlflow']['artifactsDestination']}"]
        self.serve("mlflow", sys.executable, "-m", "mlflow", "server", *arguments)
        until(lambda: self.status("/health") == 200, 240)

    def status(self, path: str, login: str = "", host: str = "") -> int:
        """The HTTP status of an answer; 0 if there is none."""
        request = urllib.request.Request(f"{self.address}{path}")
        if login:
            handler = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            handler.add_password(None, self.address, ADMIN, login)
            opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(handler))
        else:
            opener = urllib.request.build_opener()
        if host:
            request.add_header("Host", host)
        try:
            with opener.open(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return 0


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    # Not pytest's folder: that can be read by root alone, and PostgreSQL runs as another user.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in KEYS.items():
            patch.setenv(name, value)
        built = Servers(Path(folder), stack)
        built.start_database()
        built.start_storage()
        built.start_mlflow()
        yield built


@pytest.fixture
def logged_in(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    login = {
        "MLFLOW_TRACKING_URI": servers.address,
        "MLFLOW_TRACKING_USERNAME": ADMIN,
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    for name, value in login.items():
        monkeypatch.setenv(name, value)
    return login


def test_only_a_login_and_an_allowed_host_are_answered(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "/api/2.0/mlflow/experiments/get?experiment_id=0"
    assert servers.status(path) == 401
    assert servers.status(path, login="password1234") == 401, "MLflow's own default"
    assert servers.status(path, login=PASSWORD) == 200
    assert servers.status(path, login=PASSWORD, host="other.example.org") == 403
    monkeypatch.setenv("MLFLOW_TRACKING_URI", servers.address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", ADMIN)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(ValueError, match="refuses the login: set MLFLOW_TRACKING_USERNAME"), runs.connected():
        pass


def pulled_weights(cache: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The weights of the champion, fetched from the registry into a new cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return (pull("models:/derain@champion") / WEIGHTS_FILE).read_bytes()


@pytest.mark.filterwarnings("ignore:.*Any type hint is inferred:UserWarning")  # of MLflow, as a model is registered
def test_what_was_backed_up_comes_back(
    servers: Servers, logged_in: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backup, script = tmp_path / "backup", str(PROJECT / "infra" / "mlflow" / "backup.sh")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.html").write_text("a report")
    network = DGUNet.with_seed(DGUNetConfig(width=8, growth=4, head_growth=4, num_stages=2), 0)
    save_model(network, tmp_path / "model", {"task": "derain"})
    with runs.run("derain", "a run", {"model": "0"}, {}, system_metrics=False) as current:
        run = current.id
        current.log({"psnr": 31.5}, 0)
        current.log_files(tmp_path / "report", "report")
        registry.set_champion(registry.register("derain", tmp_path / "model", "0", {}), "the first", None)
    weights = (tmp_path / "model" / WEIGHTS_FILE).read_bytes()
    assert pulled_weights(tmp_path / "before", monkeypatch) == weights
    servers.run(script, "save", str(backup))

    with runs.connected():
        mlflow.MlflowClient().delete_registered_model("derain")
    for name in ("mlflow", "mlflow_auth"):
        servers.run("psql", "--quiet", "--dbname=postgres", f"--command=DROP DATABASE {name} WITH (FORCE)")
        servers.run("createdb", name)
    storage = servers.storage_client()
    for stored in storage.list_objects_v2(Bucket="mlflow").get("Contents", []):
        storage.delete_object(Bucket="mlflow", Key=stored["Key"])
    storage.close()
    with pytest.raises(ValueError, match="derain"):
        pulled_weights(tmp_path / "dropped", monkeypatch)

    servers.run(script, "restore", str(backup))
    (tmp_path / "fetched").mkdir()
    with runs.connected():
        client = mlflow.MlflowClient()
        version = client.get_model_version_by_alias("derain", "champion")
        assert version.run_id == run
        assert client.get_run(run).data.metrics == {"psnr": 31.5}
        found = client.download_artifacts(run, "report/report.html", str(tmp_path / "fetched"))
        assert Path(found).read_text() == "a report"
    assert pulled_weights(tmp_path / "after", monkeypatch) == weights
