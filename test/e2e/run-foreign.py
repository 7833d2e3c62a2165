"""A client that is not ours: python-socketio. Joins, publishes, creates a run and prints what it is pushed, a line of JSON each."""

import asyncio
import json
import sys

import socketio


async def main():
    url, token, room = sys.argv[1:4]
    client = socketio.AsyncClient(reconnection=False)
    over = asyncio.Event()

    def say(name, data):
        print(json.dumps({"name": name, "data": data}), flush=True)

    @client.on("*")
    async def pushed(name, data):
        say(name, data)
        if name == "event" and data["type"] == "run.completed":
            over.set()

    await client.connect(url, transports=["websocket"], auth={"token": token})
    say("joined", await client.call("room.join", {"room": room}, timeout=10))
    say("published", await client.call("event.publish", {"room": room, "type": "chat", "data": {"text": "grüße 🎻"}, "mid": "py-1"}, timeout=10))
    say("again", await client.call("event.publish", {"room": room, "type": "chat", "data": {"text": "grüße 🎻"}, "mid": "py-1"}, timeout=10))
    say("refused", await client.call("event.publish", {"room": "not a room", "type": "chat", "data": 1}, timeout=10))
    say("created", await client.call("run.create", {"room": room, "model": "score", "input": {"prompt": "play"}}, timeout=10))
    await asyncio.wait_for(over.wait(), 20)
    await client.disconnect()


asyncio.run(main())
