"""The same requests to this implementation and to the reference's: `omnigen2-mcp bench --against`."""
