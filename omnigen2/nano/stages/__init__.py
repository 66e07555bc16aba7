"""The stages that train nano from nothing, in the order of `run`."""
