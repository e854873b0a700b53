"""The whole system on this machine, on real servers: PostgreSQL, S3, Prefect, MLflow, and a worker for the deployments.

    python -m infra.stack [--folder ./stack]

Everything that lasts lies in the folder and is there again at the next start: databases, buckets, logs, and the keys, which
are random, its own, and handed on by environment alone. Ctrl-C stops everything.
"""

import argparse
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

from infra.deploy import POOL
from infra.gateway import S3, start_gateway
from infra.supervisor import LOOPBACK, ChildError, Supervisor, answers, listens

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable
DATABASES = ("prefect", "mlflow")
STORE, ARTIFACTS, IMAGES, WEIGHTS = "anomalyclip", "mlflow", "images", "weights"  # the buckets
LIMIT = "3"  # runs at once: each takes 3.5 GB with ViT-L
RESTARTS = 20  # of servers that ended by themselves, before something must be wrong
GIB = 2**30
DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # 0.5 GB of memory instead of 2.5
    "OMP_WAIT_POLICY": "PASSIVE",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_WORKER_QUERY_SECONDS": "2",
}


@dataclass(frozen=True)
class Ports:
    prefect: int = 4200
    mlflow: int = 5000
    s3: int = 7480
    database: int = 5433


@dataclass(frozen=True)
class Credentials:
    """Of one folder: random at its first start, readable by its owner alone."""

    database_password: str
    s3_access_key: str
    s3_secret_key: str

    @classmethod
    def of(cls, folder: Path) -> "Credentials":
        file = folder / "credentials.json"
        if not file.exists():
            made = cls(secrets.token_urlsafe(24), secrets.token_hex(10).upper(), secrets.token_urlsafe(30))
            write_private(file, json.dumps(asdict(made)))
        return cls(**json.loads(file.read_text()))


@dataclass(frozen=True)
class Stack:
    folder: Path
    host: str
    ports: Ports
    credentials: Credentials

    @property
    def prefect(self) -> str:
        return f"http://{self.host}:{self.ports.prefect}"

    @property
    def mlflow(self) -> str:
        return f"http://{self.host}:{self.ports.mlflow}"

    def database(self, driver: str, name: str) -> str:
        address = f"{LOOPBACK}:{self.ports.database}"
        return f"{driver}://anomalyclip:{self.credentials.database_password}@{address}/{name}"

    def addresses(self) -> dict[str, str]:
        """What the command `anomalyclip` and the flows need to find the servers; no secrets."""
        return {
            "ANOMALYCLIP_STORE": f"s3://{STORE}/store",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "PREFECT_API_URL": f"{self.prefect}/api",
        }


def main() -> int:
    arguments = read_arguments()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, interrupt)
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    os.umask(0o077)
    ports = Ports(arguments.prefect_port, arguments.mlflow_port, arguments.s3_port, arguments.database_port)
    stack = Stack(folder, arguments.host, ports, Credentials.of(folder))
    try:
        with Supervisor(folder / "logs", base_environment()) as supervisor:
            run(stack, supervisor, arguments.database_only)
    except KeyboardInterrupt:
        print("everything is stopped", flush=True)
        return 0
    except (ChildError, OSError) as error:
        print(f"stack: {error}; everything is stopped", file=sys.stderr)
        return 1
    return 0


def run(stack: Stack, supervisor: Supervisor, database_only: bool) -> None:
    for name, port in asdict(stack.ports).items():
        if listens(port)() and (name == "database" or not database_only):
            raise ChildError(f"something listens on port {port} already: choose another by --{name}-port")
    if database_only:
        start_database(stack, supervisor)
        say(f"PostgreSQL listens on {LOOPBACK}:{stack.ports.database}\nCtrl-C stops it")
        supervisor.watch(RESTARTS, say)
    say(f"starting in {stack.folder}: PostgreSQL, S3, Prefect, MLflow, a worker (about a minute)")
    start_database(stack, supervisor)
    s3 = start_s3(stack, supervisor)
    start_prefect(stack, supervisor)
    start_mlflow(stack, supervisor, s3)
    deploy(stack)
    start_worker(stack, supervisor, s3)
    environment = stack.folder / "environment"
    variables = stack.addresses() | s3.environment
    write_private(environment, "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items()))
    say(welcome(stack, s3, environment))
    supervisor.watch(RESTARTS, say)


# --- the servers ------------------------------------------------------------------------------------------------------


def start_database(stack: Stack, supervisor: Supervisor) -> None:
    """PostgreSQL never runs as root: for root it runs as the user that Debian's package has made."""
    data = stack.folder / "postgres"
    programs = find_postgres(data / "PG_VERSION")
    user = "postgres" if os.geteuid() == 0 else None
    if not (data / "PG_VERSION").exists():
        make_database(programs, data, stack.credentials.database_password, user)
    command = [str(programs / "postgres"), "-D", str(data), "-h", LOOPBACK, "-p", str(stack.ports.database), "-k", ""]
    fast = signal.SIGINT
    supervisor.start("postgres", command, takes_connections(stack), 600, user=user, stop_signal=fast)
    make_databases(stack)


def takes_connections(stack: Stack) -> Callable[[], bool]:
    """Its port is open earlier: after an unclean end PostgreSQL recovers first, for minutes."""

    def ready() -> bool:
        import psycopg

        try:
            psycopg.connect(stack.database("postgresql", "postgres"), connect_timeout=10).close()
        except psycopg.OperationalError as error:
            if "authentication failed" in str(error):
                raise ChildError(f"PostgreSQL has another password than credentials.json: {error}") from error
            return False
        return True

    return ready


def find_postgres(made_by: Path) -> Path:
    """The folder of its programs: of the version that has made the data, else the newest."""
    version = made_by.read_text().strip() if made_by.exists() else "*"
    found = sorted(Path("/usr/lib/postgresql").glob(f"{version}/bin/initdb"), key=lambda path: float(path.parts[-3]))
    elsewhere = shutil.which("initdb")
    if not found and elsewhere is None:
        package = "postgresql" if version == "*" else f"postgresql-{version}, which has made {made_by.parent},"
        raise ChildError(f"Debian's {package} is not installed: make stack-packages")
    return (found[-1] if found else Path(elsewhere or "")).parent


def make_database(programs: Path, data: Path, password: str, user: str | None) -> None:
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(mode=0o700)
    words = data.with_name("postgres.password")
    write_private(words, password)
    if user:
        data.parent.chmod(0o711)  # it may pass through; what lies here is for its owner alone
        for path in (data, words):
            shutil.chown(path, user, user)
    access = ["-U", "anomalyclip", "-A", "scram-sha-256", "--pwfile", str(words)]
    command = [str(programs / "initdb"), "-D", str(data), "-E", "UTF8", "--locale", "C.UTF-8", *access]
    try:
        if as_user(user, ["test", "-w", str(data)]).returncode:
            raise ChildError(f"PostgreSQL, as user {user}, cannot reach {data}: choose a folder that all may pass through, "
                             "`make stack FOLDER=/var/lib/anomalyclip`")  # fmt: skip
        if (done := as_user(user, command)).returncode:
            raise ChildError(f"initdb failed: {done.stderr.strip()}")
    finally:
        words.unlink()


def as_user(user: str | None, command: list[str]) -> "subprocess.CompletedProcess[str]":
    groups: list[str] | None = None if user is None else []
    return subprocess.run(
        command, user=user, group=user, extra_groups=groups, env=base_environment(), capture_output=True, text=True
    )  # fmt: skip


def make_databases(stack: Stack) -> None:
    import psycopg

    with psycopg.connect(stack.database("postgresql", "postgres"), autocommit=True) as connection:
        known = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            if name not in known:
                connection.execute(f"CREATE DATABASE {name}")


def start_s3(stack: Stack, supervisor: Supervisor) -> S3:
    keys = (stack.credentials.s3_access_key, stack.credentials.s3_secret_key)
    folder = stack.folder / "s3"
    s3 = start_gateway(supervisor, folder, "bluestore", keys, stack.ports.s3, capacity=100 * GIB)
    s3.make_buckets(STORE, ARTIFACTS, IMAGES, WEIGHTS)
    return s3


def start_prefect(stack: Stack, supervisor: Supervisor) -> None:
    environment = {
        "PREFECT_HOME": str(stack.folder / "prefect"),
        "PREFECT_API_URL": f"{stack.prefect}/api",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": stack.database("postgresql+asyncpg", "prefect"),
        # else any page that is open in a browser of this machine may start runs
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{stack.prefect},http://localhost:{stack.ports.prefect}",
    }
    command = [PYTHON, "-m", "prefect", "server", "start", "--host", stack.host, "--port", str(stack.ports.prefect)]
    supervisor.start("prefect", command, answers(f"{stack.prefect}/api/health"), environment=environment)


def start_mlflow(stack: Stack, supervisor: Supervisor, s3: S3) -> None:
    environment = s3.environment | {
        "MLFLOW_BACKEND_STORE_URI": stack.database("postgresql+psycopg", "mlflow"),
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{ARTIFACTS}",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost:*,{LOOPBACK}:*,{stack.host}:*",
    }
    command = [
        PYTHON,
        "-m",
        "mlflow",
        "server",
        "--host",
        stack.host,
        "--port",
        str(stack.ports.mlflow),
        "--workers",
        "1",
    ]
    supervisor.start("mlflow", command, answers(f"{stack.mlflow}/health"), environment=environment)


def deploy(stack: Stack) -> None:
    environment = base_environment() | stack.addresses() | {"PREFECT_HOME": str(stack.folder / "prefect")}
    with (stack.folder / "logs" / "deploy.log").open("ab") as log:
        command = [PYTHON, "-m", "infra.deploy"]
        done = subprocess.run(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise ChildError(f"the deployments were not applied: {log.name} says why")


def start_worker(stack: Stack, supervisor: Supervisor, s3: S3) -> None:
    environment = stack.addresses() | s3.environment | {"PREFECT_HOME": str(stack.folder / "prefect-worker")}
    command = [PYTHON, "-m", "prefect", "worker", "start", "--pool", POOL, "--name", "stack", "--limit", LIMIT]
    supervisor.start("worker", command, environment=environment)


# --- around them ------------------------------------------------------------------------------------------------------


def base_environment() -> dict[str, str]:
    """Ours, without what would point to other servers or bring other keys."""
    foreign = ("AWS_", "PREFECT_API_", "PREFECT_SERVER_DATABASE_", "MLFLOW_TRACKING_", "PG", "ANOMALYCLIP_STORE")
    return DEFAULTS | {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


def write_private(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(text)


def welcome(stack: Stack, s3: S3, environment: Path) -> str:
    exports = "\n".join(f"  export {name}={shlex.quote(value)}" for name, value in stack.addresses().items())
    return f"""
Prefect   {stack.prefect}
MLflow    {stack.mlflow}/#/models/anomalyclip
S3        {s3.endpoint} (buckets {STORE}, {ARTIFACTS}, {IMAGES}, {WEIGHTS})
logs      {stack.folder / "logs"}

In a second shell, with the keys of S3 (the file is for its owner alone):
  . {shlex.quote(str(environment))}
which is, besides the AWS variables,
{exports}

A night needs a model: `.venv/bin/anomalyclip demo` trains one, import-checkpoint takes one; and images: in s3://{IMAGES}/line-4
for the deployment `nightly`. Ctrl-C stops everything; the next start goes on with what is here.
"""


def say(text: str) -> None:
    print(text, flush=True)


def interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m infra.stack", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("stack"), help="for databases, buckets, keys and logs")
    parser.add_argument(
        "--host",
        default=LOOPBACK,
        help="this machine's name or address, of the pages of Prefect and MLflow; nobody logs in there",
    )
    parser.add_argument(
        "--database-only", action="store_true", help="PostgreSQL alone, to restore databases or to upgrade MLflow's"
    )
    for name, port in asdict(Ports()).items():
        text = f"default {port}" + ("; counts at the first start" if name == "s3" else "")
        parser.add_argument(f"--{name}-port", type=int, default=port, help=text)
    arguments = parser.parse_args()
    if arguments.host in ("0.0.0.0", "::"):
        parser.error(f"--host {arguments.host}: name one address of this machine, which browsers ask for")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
