"""QMP for threads: qemu.qmp's QMPClient in an event loop, and a thread, of its own.

Events are pumped from the start to the end of the connection, whether or not anybody waits. Every command,
reply and event is written to qmp.jsonl, one JSON object a line, with the monotonic time in seconds.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from qemu.qmp import ConnectError, EventListener, ExecuteError, QMPClient, QMPError, Runstate

from rig.errors import Cancelled, GuestDied, GuestHung, ProtocolError
from rig.vm.deadline import POLL, Watch

_T = TypeVar("_T")

PATIENCE = 30.0  # seconds that QEMU has to answer a command


class Qmp:
    """A QMP connection over a connected socket, which it takes over. A context manager.

    on_event is called with each event's name and data, on_lost once when the connection ends without close();
    both in the loop's thread, so they must not call execute(). May be used from several threads.

    Raises ProtocolError when QEMU sends no greeting, or closes the connection instead.
    """

    def __init__(
        self,
        sock: socket.socket,
        log: Path,
        watch: Watch,
        *,
        on_event: Callable[[str, Mapping[str, Any]], None],
        on_lost: Callable[[], None],
        timeout: float = 10.0,
    ) -> None:
        self._watch = watch
        self._on_event = on_event
        self._on_lost = on_lost
        self._closing = False
        self._log_lock = threading.Lock()
        self._log = log.open("w", encoding="utf-8")
        self._client = QMPClient("rig")
        self._listener = EventListener()
        self._beside = sock.dup()  # for what travels beside the text: file descriptors
        self._tasks: list[asyncio.Task[None]] = []
        self._connecting: asyncio.Task[None] | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        try:
            self._await(self._connect(sock), timeout, "greeting")
        except BaseException:
            sock.close()
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def execute(self, command: str, arguments: Mapping[str, object] | None = None, timeout: float = PATIENCE) -> Any:
        """Execute a command and return what QEMU returned.

        Raises ProtocolError when QEMU refuses the command, GuestDied when the connection is lost, GuestHung
        when no reply came within `timeout` seconds, Cancelled.
        """
        self._write({"command": command, "arguments": dict(arguments or {})})
        try:
            reply = self._await(self._client.execute(command, arguments), timeout, command)
        except ExecuteError as error:
            self._write({"error": str(error), "class": error.error_class})
            raise ProtocolError(f"QEMU refused {command}: {error}", sent=f"{command} {arguments}") from error
        self._write({"return": reply})
        return reply

    def give(self, name: str, descriptor: int) -> None:
        """Have QEMU own a duplicate of a file descriptor, under a name. Raises as execute() does."""
        try:
            socket.send_fds(self._beside, [b" "], [descriptor])
        except OSError as error:
            raise GuestDied(f"QEMU closed the QMP connection: {error.strerror}") from error
        self.execute("getfd", {"fdname": name})

    def monitor(self, line: str, timeout: float = PATIENCE) -> str:
        """A line of the human monitor protocol, for what QMP itself lacks. Returns the text printed."""
        text = self.execute("human-monitor-command", {"command-line": line}, timeout)
        if not isinstance(text, str):
            raise ProtocolError("QEMU's monitor answered no text", sent=line, received=repr(text))
        return text

    def close(self) -> None:
        """End the connection and its thread. Never raises for a connection that is gone already."""
        if self._closing:
            return
        self._closing = True
        try:
            asyncio.run_coroutine_threadsafe(self._disconnect(), self._loop).result(timeout=5.0)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._log.close()
            self._beside.close()

    def _await(self, work: Coroutine[Any, Any, _T], timeout: float, what: str) -> _T:
        """Run `work` in the loop's thread and wait for its result, with QMP's errors turned into rig's."""
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout), self._loop)
        while True:
            try:
                return future.result(POLL)
            except TimeoutError as error:
                if not future.done():
                    self._check_cancelled(future)
                elif isinstance(future.exception(), TimeoutError):
                    raise GuestHung(f"QEMU did not answer QMP {what} within {timeout:.0f} s") from error
                # else it came to its end just after this wait of POLL seconds had: its result is there now
            except ConnectError as error:
                raise ProtocolError(f"no QMP connection to QEMU: {error}") from error
            except ExecuteError:
                raise
            except QMPError as error:
                raise GuestDied(f"QEMU closed the QMP connection before it answered {what}") from error

    def _check_cancelled(self, future: concurrent.futures.Future[_T]) -> None:
        try:
            self._watch.check_cancelled()
        except Cancelled:
            future.cancel()
            raise

    async def _connect(self, sock: socket.socket) -> None:
        self._connecting = asyncio.current_task()
        self._client.register_listener(self._listener)
        try:
            await self._client.connect(sock)
        except AssertionError as error:  # qemu.qmp is sure that it is connected once the greeting has been answered
            raise GuestDied("QEMU closed the QMP connection right after its greeting") from error
        self._tasks = [
            asyncio.create_task(self._pump_events()),
            asyncio.create_task(self._watch_connection()),
        ]

    async def _pump_events(self) -> None:
        async for event in self._listener:
            self._write({"event": event["event"], "data": event.get("data")})
            data = event.get("data")
            self._on_event(str(event["event"]), data if isinstance(data, dict) else {})

    async def _watch_connection(self) -> None:
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()
        # Events that arrived before the end come first: they may say why.
        while not self._listener.empty():
            await asyncio.sleep(0)
        if not self._closing:
            self._on_lost()

    async def _disconnect(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._connecting is not None:
            # Cancelled before the greeting came, it is about to disconnect by itself; a second one at a time is too
            # much for qemu.qmp (an AssertionError in its _cleanup()).
            await asyncio.gather(self._connecting, return_exceptions=True)
        if self._client.runstate != Runstate.IDLE:
            # What it raises is how the connection broke; whoever waited for a reply has been told. ValueError: by
            # what was no UTF-8.
            with contextlib.suppress(QMPError, OSError, EOFError, ValueError):
                await self._client.disconnect()

    def _write(self, entry: Mapping[str, object]) -> None:
        with self._log_lock:
            if not self._log.closed:
                self._log.write(json.dumps({"time": round(time.monotonic(), 6), **entry}) + "\n")
                self._log.flush()
