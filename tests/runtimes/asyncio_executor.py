"""An asyncio server that hands its work to an executor's threads: asyncio_executor.py PORT."""

import asyncio
import concurrent.futures
import secrets
import sys

STATE = {"secret": secrets.token_hex(8), "count": 0}
POOL = concurrent.futures.ThreadPoolExecutor(4)


def work():
    return sum(i * i for i in range(1000))


async def serve(reader, writer):
    try:
        await reader.readuntil(b"\r\n\r\n")
        STATE["count"] += 1
        count = STATE["count"]
        result = await asyncio.get_running_loop().run_in_executor(POOL, work)
        body = f"{STATE['secret']} {count} {result}"
        writer.write(f"HTTP/1.0 200 OK\r\n\r\n{body}".encode())
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, "0.0.0.0", int(sys.argv[1]))
    async with server:
        await server.serve_forever()


asyncio.run(main())
