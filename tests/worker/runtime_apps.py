"""Applications for the tests of the runtime: each shows, or does, what a worker must stand."""

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
import time

import setproctitle


def _running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


RUNNING_AT_IMPORT = _running()
LOOP_AT_IMPORT = asyncio.get_event_loop_policy().get_event_loop()


async def respond(send, text):
    data = text.encode()
    headers = [(b"content-length", b"%d" % len(data))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})


async def surroundings(scope, receive, send):
    assert scope["type"] == "http"
    loop = asyncio.get_running_loop()
    names = ("ASGIRI_WORKER_SLOT", "ASGIRI_WORKER_ID", "ASGIRI_GENERATION")
    descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    await respond(
        send,
        " ".join(f"{name}={os.environ[name]}" for name in names)
        + f" title={setproctitle.getproctitle()}"
        + f" loop_at_import={LOOP_AT_IMPORT is loop} running_at_import={RUNNING_AT_IMPORT}"
        + f" frozen={gc.get_freeze_count() > 0} loop={type(loop).__module__.partition('.')[0]}"
        + f" inheritable={[fd for fd in descriptors if fd > 2 and inheritable(fd)]}",
    )


def inheritable(fd):
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False  # what listed them


async def logs_debug(scope, receive, send):
    assert scope["type"] == "http"
    logging.getLogger("asgiri.test").debug("debug: %s", scope["path"])
    await respond(send, "")


def block(seconds):
    print("blocks", flush=True)
    time.sleep(seconds)


async def blocks_first(scope, receive, send):
    assert scope["type"] == "http"
    if scope["path"] == "/block":
        block(0.5)
    if scope["path"] == "/block-for-ever":
        block(60)
    await respond(send, "")


async def starts_a_thread(scope, receive, send):
    assert scope["type"] == "http"
    threading.Thread(target=time.sleep, args=(60,)).start()
    await respond(send, "")


left = []


async def leaves_a_task(scope, receive, send):
    assert scope["type"] == "http"

    async def wait():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            print("left task: cancelled", flush=True)
            raise

    left.append(asyncio.create_task(wait()))
    await respond(send, "")


async def starts_a_program(scope, receive, send):
    assert scope["type"] == "http"
    status = subprocess.run(
        [sys.executable, "-c", "print(open('/proc/self/status').read())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    # What Python itself ignores at its start: SIGPIPE and SIGXFSZ.
    await respond(send, f"{fields['SigIgn']} {fields['SigBlk']}")


async def awaits_a_program(scope, receive, send):
    assert scope["type"] == "http"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "print('hello', end=''); raise SystemExit(3)"),
        stdout=asyncio.subprocess.PIPE,
    )
    output, _ = await process.communicate()
    await respond(send, f"{output.decode()} {process.returncode}")


async def notes_calls(scope, receive, send):
    assert scope["type"] == "http"
    print("called:", scope["path"], flush=True)
    if scope["path"] == "/block":
        while not os.path.exists(os.environ["BLOCK_UNTIL"]):
            time.sleep(0.01)
    await respond(send, "")


async def exits_in_a_task(scope, receive, send):
    assert scope["type"] == "http"

    async def leave():
        raise SystemExit(7)

    left.append(asyncio.create_task(leave()))
    await asyncio.sleep(60)
