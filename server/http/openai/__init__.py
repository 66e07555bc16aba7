"""OpenAI's images API: generations, edits and models, translated to the tools and back.

As of openai-python 3.57 (developers.openai.com/api/reference/resources/images). This is the one surface that
names tools and parameters, as its requests have other names for them.
"""

from server.http.openai.described import described
from server.http.openai.routes import routes

__all__ = ["described", "routes"]
