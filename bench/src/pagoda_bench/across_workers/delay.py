"""A port that leads to another one, later: every byte takes `one_way_s` longer in each direction, as over a network of that round trip.

Bandwidth is not bounded and order is kept. Stands between router and workers in this benchmark only; the product knows no such thing.
"""

import asyncio
import contextlib

CHUNK_BYTES = 1 << 16


class DelayedPort:
    def __init__(self, target_port: int) -> None:
        """On loopback. `one_way_s` may change at any time; bytes never overtake each other."""
        self.one_way_s = 0.0
        self.port = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        for source, sink in ((reader, onward[1]), (onward[0], writer)):
            pump = asyncio.create_task(self._pump(source, sink))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        delivering = asyncio.create_task(_deliver(under_way, sink))
        try:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(CHUNK_BYTES):
                    under_way.put_nowait((asyncio.get_running_loop().time() + self.one_way_s, data))
            under_way.put_nowait((asyncio.get_running_loop().time() + self.one_way_s, b""))
            await delivering
        finally:
            delivering.cancel()
            sink.close()


async def _deliver(under_way: "asyncio.Queue[tuple[float, bytes]]", sink: asyncio.StreamWriter) -> None:
    """An empty piece is the end."""
    with contextlib.suppress(ConnectionError):
        while True:
            due_s, data = await under_way.get()
            if (wait_s := due_s - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(wait_s)
            if not data:
                return
            sink.write(data)
            await sink.drain()
