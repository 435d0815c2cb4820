"""The least that an aiohttp handler can do: what the real server's requests are measured by."""

from __future__ import annotations

import asyncio

from aiohttp import web


async def answer(_request: web.Request) -> web.Response:
    return web.Response(body=b'{"message": "ok"}', content_type="application/json")


async def serve() -> None:
    app = web.Application()
    app.router.add_get("/bare", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"listens on http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
