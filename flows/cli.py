"""The command `anomalyclip`: a thin layer of arguments over the flows.

Results go to standard output (a table, or one JSON object with --json), progress and logs to standard error.
Exit 0: done; 2: wrong use or unusable input, in one sentence; 1: it failed; 130: stopped by Ctrl-C.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flows.arguments import build_parser
from flows.commands import Refused
from tasks.errors import InputError
from tasks.store import CACHE, Store, refuse_credentials


def main(argv: Sequence[str] | None = None) -> int:
    arguments = build_parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)
    try:
        for value in vars(arguments).values():
            for text in strings_in(value):
                refuse_credentials(text)  # before Prefect keeps it as a parameter
        prepare_environment(arguments.store)
        silence_input_errors()
        start_prefect_server()
        summary, text = arguments.run(arguments)
    except InputError as error:
        print(f"anomalyclip: {error}", file=sys.stderr)
        return 2
    except Refused as refused:
        print(f"anomalyclip: {first_line(refused)}", file=sys.stderr)
        if arguments.json:
            print(as_json(refused.summary))
        return 1
    except Terminated:
        print("anomalyclip: terminated; what is committed stays, run the same command to go on", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt as stopped:
        done = f"stopped: {stopped}" if stopped.args else "stopped"
        print(f"anomalyclip: {done}; what is committed stays, run the same command to go on", file=sys.stderr)
        return 130
    except Exception as error:
        if debugging():
            traceback.print_exc()
        print(f"anomalyclip: {arguments.command} failed: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
        return 1
    print(as_json(summary) if arguments.json else text)
    return 1 if getattr(summary, "failed", None) else 0


class Terminated(BaseException):
    """SIGTERM: what was started ends with the command, as after Ctrl-C."""


def terminate(*_: Any) -> None:
    raise Terminated


def debugging() -> bool:
    return os.environ.get("PREFECT_LOGGING_LEVEL") == "DEBUG"


def strings_in(value: Any) -> Iterator[str]:
    """An argument's strings: it is one, or a list of them or of pairs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")


def as_json(summary: Any) -> str:
    return json.dumps(asdict(summary), ensure_ascii=False)


# --- environment ------------------------------------------------------------------------------------------------------


def prepare_environment(store: str) -> None:
    """Before Prefect, MLflow and torch are imported: all local under the store where nothing else is configured."""
    home = Store(store).local_root or CACHE
    if "?" in str(home):  # where SQLite's URLs end
        raise InputError(f"the path of a local store cannot hold a question mark: {str(home)!r}")
    defaults = {
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_LOGGING_LEVEL": "INFO" if "PREFECT_API_URL" in os.environ else "ERROR",  # a server shows it in its UI
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is ours alone
        "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads slow the decoding ones
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ:
        prefect_home = os.environ["PREFECT_HOME"]
        try:
            Path(prefect_home).mkdir(parents=True, exist_ok=True)  # its database fails without the folder
        except OSError as error:
            raise InputError(f"Prefect's folder {prefect_home} cannot be made: {error.strerror}") from error
    warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted in multiple ways")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def start_prefect_server() -> None:
    """The ephemeral one where no other is configured, as Prefect would start it by itself, but that it hears no Ctrl-C.

    A terminal sends it to all of its processes: a server that is gone would be asked for a minute to note how the run ended.
    """
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    if settings.api.url or not settings.server.ephemeral.enabled:
        return
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    if server.server_process:  # of an earlier command of this process
        return

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # of this thread, and of what it starts
        server.start()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(start).result()
    if server.server_process:
        end_with_us(server.server_process.pid)


def end_with_us(process: int) -> None:
    """Ends a process when this one is gone, SIGKILL included: then the pipe ends that a shell waits for."""
    end, _ = os.pipe()  # the other one stays open as long as we live
    command, nowhere = ["sh", "-c", f"read _; kill {process}"], subprocess.DEVNULL
    subprocess.Popen(command, stdin=end, stdout=nowhere, stderr=nowhere, start_new_session=True)
    os.close(end)


def silence_input_errors() -> None:
    """Prefect logs every exception with its traceback; ours for the user are said once, in one sentence.

    Of others it says a line here, where no server shows them; PREFECT_LOGGING_LEVEL=DEBUG brings the tracebacks.
    """
    brief = "PREFECT_API_URL" not in os.environ and not debugging()

    def is_about_us(record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if brief:
            record.exc_info = record.exc_text = None
        return not (isinstance(error, InputError) or "InputError" in record.getMessage())

    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(is_about_us)


if __name__ == "__main__":
    sys.exit(main())
