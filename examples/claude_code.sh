claude mcp add omnigen2 -- /path/to/omnigen2-mcp/.venv/bin/omnigen2-mcp serve
