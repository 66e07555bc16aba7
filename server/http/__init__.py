"""Everything over HTTP: MCP, the tools as REST, stored images, health; and who gets in."""
