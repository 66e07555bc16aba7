omnigen2-mcp serve --transport http
