"""A plugin that has the server take every client for one that waits for a tenth of a second only."""

import server.mcp

server.mcp.SILENCE_S = 0.1
