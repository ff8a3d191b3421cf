"""PostgreSQL, SeaweedFS and MLflow for tests, as infra/mlflow sets them up; all real.

They need PostgreSQL, `weed` on PATH or in DGUNET_TEST_TOOLS, and the packages of `mlflow[auth]` and psycopg 3 in the
folder DGUNET_TEST_PACKAGES, as .ci/run installs them.
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
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from factories import PROJECT
from processes import ENDED_WITH_THE_TESTS, KILLED_WITH_THE_TESTS, until

POSTGRES = next((path for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
TOOLS = os.pathsep.join([os.environ.get("DGUNET_TEST_TOOLS", ""), os.environ["PATH"]]).strip(os.pathsep)
WEED = shutil.which("weed", path=TOOLS)
PACKAGES = os.environ.get("DGUNET_TEST_PACKAGES", "")
USER, PASSWORD = "admin", "of-the-tests-0123"
KEYS = {"AWS_ACCESS_KEY_ID": "key-of-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests"}
VALUES = yaml.safe_load((PROJECT / "infra" / "mlflow" / "values.yaml").read_text())
DATABASES = ("mlflow", "mlflow_auth")


def missing_services() -> str:
    """What the services need and this machine does not have; empty if nothing is missing."""
    needed = {
        "PostgreSQL": POSTGRES,
        "weed": WEED,
        "DGUNET_TEST_PACKAGES": PACKAGES,
        "root": os.geteuid() == 0,
        "setpriv": shutil.which("setpriv"),
    }
    missing = ", ".join(name for name, found in needed.items() if not found)
    return missing and f"needs {missing}: .ci/run installs it"


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _free_pairs(address: str, count: int) -> list[int]:
    """Different ports that are free, as are those 10,000 above them, on which SeaweedFS speaks gRPC."""
    found: list[int] = []
    for number in random.sample(range(18_000, 28_000), 10_000):
        with suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind((address, number))
            second.bind((address, number + 10_000))
            found.append(number)
        if len(found) == count:
            break
    return found


class Services:
    """PostgreSQL, SeaweedFS and MLflow on this machine.

    Args:
        folder: for their files; other users must be able to enter it.
        stack: stops them.
        address: where SeaweedFS and MLflow listen.
    """

    bucket = "bucket"  # for the project; MLflow has one of its own

    def __init__(self, folder: Path, stack: ExitStack, address: str) -> None:
        self.folder, self.stack, self.address = folder, stack, address
        s3, *self.others = _free_pairs(address, 4)
        self.s3, self.mlflow = f"http://{address}:{s3}", f"http://{address}:{_free_port(address)}"
        self.variables = {
            "PATH": f"{Path(sys.executable).parent}:{POSTGRES}:/usr/bin:/bin",
            "HOME": str(folder),
            "PYTHONPATH": PACKAGES,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(_free_port("127.0.0.1")),
            "PGUSER": "postgres",
            **KEYS,
            "AWS_ENDPOINT_URL": self.s3,
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "of-the-tests",
            "MLFLOW_ARTIFACTS_DESTINATION": VALUES["mlflow"]["artifactsDestination"],
            **{each["name"]: each["value"] for each in VALUES["env"]},
            "MLFLOW_AUTH_CONFIG_PATH": str(PROJECT / "infra" / "mlflow" / "basic_auth.ini"),
        }
        self._start_database()
        self._start_storage()
        self._start_mlflow()

    def run(self, *command: str) -> str:
        """Run a command with the variables of the services; return what it prints."""
        done = subprocess.run(command, env=self.variables, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def back_up(self, folder: Path) -> None:
        """Save databases and artifacts by backup.sh."""
        self.run(str(PROJECT / "infra" / "mlflow" / "backup.sh"), "save", str(folder))

    def lose_everything(self) -> None:
        """Replace the databases by empty ones, and delete the artifacts."""
        for name in DATABASES:
            self.run("psql", "--quiet", "--dbname=postgres", f"--command=DROP DATABASE {name} WITH (FORCE)")
            self.run("createdb", name)
        with closing(self.client()) as storage:
            for stored in storage.list_objects_v2(Bucket="mlflow").get("Contents", []):
                storage.delete_object(Bucket="mlflow", Key=stored["Key"])

    def restore(self, folder: Path) -> None:
        """Restore by backup.sh what `back_up` has saved."""
        self.run(str(PROJECT / "infra" / "mlflow" / "backup.sh"), "restore", str(folder))

    def keys(self, prefix: str = "") -> set[str]:
        """The keys of all objects of the project that begin with a prefix."""
        with closing(self.client()) as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
            return {entry["Key"] for page in pages for entry in page.get("Contents", [])}

    def client(self) -> Any:
        """Return a client of the storage; boto3.client itself would use the keys of its first call in this process."""
        session = boto3.Session(**{name.lower(): value for name, value in KEYS.items()}, region_name="us-east-1")
        once = Config(connect_timeout=5, read_timeout=20, retries={"total_max_attempts": 1})
        return session.client("s3", endpoint_url=self.s3, config=once)

    def status(self, path: str, login: str = "", host: str = "") -> int:
        """The HTTP status of an answer of MLflow; 0 if there is none.

        Args:
            path: what follows the address.
            login: the password, if any.
            host: the value of the header Host, if it is not the address.
        """
        request = urllib.request.Request(f"{self.mlflow}{path}")
        if login:
            handler = urllib.request.HTTPPasswordMgrWithDefaultRealm()
            handler.add_password(None, self.mlflow, USER, login)
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

    def _start(
        self, name: str, *command: str, user: int | None = None, has_children: bool = False
    ) -> subprocess.Popen[bytes]:
        """Start a server; it is killed, with its child processes, at the end, and if the tests are killed."""
        with (self.folder / f"{name}.log").open("w") as log:
            server = subprocess.Popen(
                [*(ENDED_WITH_THE_TESTS if has_children else KILLED_WITH_THE_TESTS), *command],
                env=self.variables,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=user,
                cwd=self.folder,
            )

        def stop() -> None:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM if user else signal.SIGKILL)
            server.wait(60)

        self.stack.callback(stop)
        return server

    def _start_database(self) -> None:
        """Make a database cluster, which PostgreSQL does not let root do, and the two databases."""
        data = self.folder / "data"
        data.mkdir()
        shutil.chown(data, "postgres")
        user = data.stat().st_uid
        make = [f"{POSTGRES}/initdb", "--auth=trust", "--no-sync", "--pgdata", str(data)]
        subprocess.run(make, user=user, check=True, capture_output=True, cwd=self.folder)
        settings = ["listen_addresses=127.0.0.1", f"port={self.variables['PGPORT']}", f"unix_socket_directories={data}"]
        options = [part for setting in [*settings, "fsync=off"] for part in ("-c", setting)]
        self._start("postgres", f"{POSTGRES}/postgres", "-D", str(data), *options, user=user)
        ready = [f"{POSTGRES}/pg_isready", "--quiet"]
        until(lambda: subprocess.run(ready, env=self.variables, check=False).returncode == 0, 60)
        for name in DATABASES:
            self.run("createdb", name)

    def _start_storage(self) -> None:
        """Start SeaweedFS with keys, and make the buckets."""
        objects = self.folder / "objects"
        objects.mkdir()
        names = ("master.port", "volume.port", "filer.port")
        addresses = [f"-{name}={port}" for name, port in zip(names, self.others, strict=True)]
        # Its catalogs listen on fixed ports and end it where one is taken; 0 leaves them out.
        addresses += [f"-s3.port={self.s3.rpartition(':')[2]}", "-s3.port.iceberg=0", "-s3.port.lance=0"]
        server = self._start(
            "weed", str(WEED), "server", f"-dir={objects}", f"-ip={self.address}", f"-ip.bind={self.address}",
            *addresses, "-master.telemetry=false", "-master.volumeSizeLimitMB=64", "-volume.max=0", "-s3",
            "-s3.autoCreateBucket=false",
        )  # fmt: skip
        client = self.client()

        def make_bucket(name: str) -> bool:
            assert server.poll() is None, (self.folder / "weed.log").read_text()[-3000:]
            try:
                client.create_bucket(Bucket=name)
            except client.exceptions.BucketAlreadyOwnedByYou:  # made by a request whose answer came too late
                return True
            except (BotoCoreError, ClientError) as error:  # it does not listen yet, or has no volume yet
                print(error)  # pytest shows it if this goes on
                return False
            return True

        with closing(client):
            for bucket in ("mlflow", self.bucket):
                until(partial(make_bucket, bucket), 240)

    def _start_mlflow(self) -> None:
        """Start MLflow with the arguments of values.yaml, but for its address."""
        port = self.mlflow.rpartition(":")[2]
        options = VALUES["server"]["value_options"] | {
            "host": self.address, "port": port, "workers": 1, "allowed_hosts": f"{self.address}:{port}"
        }  # fmt: skip
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        arguments += [f"--{name.replace('_', '-')}" for name in VALUES["server"]["flag_options"]]
        arguments += [f"--backend-store-uri={VALUES['mlflow']['backendStoreUri']}"]
        arguments += [f"--artifacts-destination={VALUES['mlflow']['artifactsDestination']}"]
        server = self._start("mlflow", sys.executable, "-m", "mlflow", "server", *arguments, has_children=True)

        def answers() -> bool:
            assert server.poll() is None, (self.folder / "mlflow.log").read_text()[-3000:]
            return self.status("/health") == 200

        until(answers, 240)


@contextmanager
def services(address: str = "127.0.0.1") -> Iterator[Services]:
    """The services, with an empty registry and empty buckets; the keys of the storage are set in this process."""
    # Not pytest's folder: that can be read by root alone, and PostgreSQL runs as another user.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, ExitStack() as stack:
        Path(folder).chmod(0o755)
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for name, value in KEYS.items():
            patch.setenv(name, value)
        yield Services(Path(folder), stack, address)
