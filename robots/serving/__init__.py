"""The openpi websocket protocol: server, client, and a proxy in between."""
