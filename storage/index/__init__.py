"""The index of a store: an SQLite database derived from its blobs and records, rebuilt when damaged."""
