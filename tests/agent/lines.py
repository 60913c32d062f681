"""Modbus TCP servers of two origins, with the same devices behind them.

The framing, the function codes and the exceptions are those of the servers: pymodbus, and
github.com/simonvetter/modbus, which has nothing in common with the library of the agent.
"""

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice
from tests.stack import build, places
from tests.stack.processes import StackError

from derops_agent.drivers.modbus_tcp import Address, Table

Answer = Sequence[int] | ExcCodes


class Answering(Protocol):
    """A device: registers that somebody asks for."""

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        """Return registers, after writing ``values`` to them if there are any."""
        ...


class Line(Protocol):
    """A server with devices behind it, by unit id; it listens until it is stopped."""

    address: Address

    def __init__(self, units: Mapping[int, Answering]) -> None: ...

    async def start(self) -> None:
        """Listen, after the first time on the same port."""
        ...

    async def stop(self) -> None:
        """End all connections and listen no more."""
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(self, *_: object) -> None: ...


class PymodbusLine:
    """On pymodbus's server; a unit that it does not have is silent."""

    def __init__(self, units: Mapping[int, Answering]) -> None:
        self._devices = [
            SimDevice(
                id=unit_id,
                simdata=[SimData(0, count=65536, values=0, datatype=DataType.REGISTERS)],
                action=_action(unit),
            )
            for unit_id, unit in units.items()
        ]
        self._server: ModbusTcpServer | None = None
        self.address = Address("127.0.0.1", 0)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen."""
        server = ModbusTcpServer(self._devices, address=self.address, ignore_missing_devices=True)
        await server.serve_forever(background=True)
        self._server = server
        listening: Any = server.transport
        self.address = Address("127.0.0.1", listening.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End."""
        if self._server is not None:
            await self._server.shutdown()  # type: ignore[no-untyped-call]
            self._server = None


class GoLine:
    """On the server in tests/modbusserver; for a unit that it does not have it answers 11."""

    _ports: ClassVar[list[int]] = []
    """Claims of earlier lines: each holds an open file until this process ends."""

    def __init__(self, units: Mapping[int, Answering]) -> None:
        self._units = units
        self.address = Address(
            "127.0.0.1", self._ports.pop() if self._ports else places.free_port()
        )
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        self._ports.append(self.address.port)

    async def start(self) -> None:
        """Listen."""
        program = await asyncio.to_thread(build.program, "modbusserver")
        self._process = await asyncio.create_subprocess_exec(
            str(program),
            str(self.address),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert self._process.stdout is not None
        if await self._process.stdout.readline() != b"ready\n":
            raise StackError(f"the Modbus server did not listen on {self.address}")
        self._task = asyncio.create_task(self._serve(self._process))

    async def stop(self) -> None:
        """End."""
        process, task = self._process, self._task
        self._process = self._task = None
        if process is None or task is None:
            return
        with contextlib.suppress(ProcessLookupError):  # Ctrl-C ended it as well
            process.kill()
        await process.wait()
        await task

    async def _serve(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async with asyncio.TaskGroup() as tasks:
            while line := await process.stdout.readline():
                tasks.create_task(self._answer(process, json.loads(line)))

    async def _answer(self, process: asyncio.subprocess.Process, asked: dict[str, Any]) -> None:
        unit = self._units.get(asked["unit"])
        got: Answer = ExcCodes.GATEWAY_NO_RESPONSE
        if unit is not None:
            facts = (asked[name] for name in ("table", "address", "count", "values"))
            got = await unit.answer(*facts)
        reply = {"id": asked["id"]} | (
            {"exception": got.value} if isinstance(got, ExcCodes) else {"values": list(got)}
        )
        assert process.stdin is not None
        if not process.stdin.is_closing():
            process.stdin.write(json.dumps(reply).encode() + b"\n")


def _action(unit: Answering) -> Any:
    async def act(
        function_code: int,
        start: int,
        address: int,
        count: int,
        current: list[int],
        values: list[int] | None,
    ) -> ExcCodes | None:
        table: Table = "input" if function_code == 4 else "holding"
        words = None if values is None else [int(value) for value in values]
        got = await unit.answer(table, address, count, words)
        if isinstance(got, ExcCodes):
            return got
        current[address - start : address - start + count] = got
        if values is not None:
            values[:] = got  # what it puts into its own registers
        return None

    return act


LINES: list[type[Line]] = [PymodbusLine, GoLine]
"""For tests that hold on both."""
