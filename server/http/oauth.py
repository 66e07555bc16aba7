"""Where clients learn who issues tokens for this server: protected resource metadata (RFC 9728).

The server is an OAuth 2.1 resource server: `server.http.access_tokens` checks tokens, and it issues none.
"""

from urllib.parse import urlsplit

from starlette.routing import Route

from server.app import App
from server.caller import SCOPES
from server.http.openapi import JSON, Paths, answer, operation

WELL_KNOWN = "/.well-known/oauth-protected-resource"


def routes(app: App, _: object) -> list[Route]:
    """The routes of the metadata, at the root and for the address of MCP; none without an issuer."""
    issuer, audience = app.settings.oauth_issuer, app.settings.oauth_audience
    if issuer is None or audience is None:
        return []
    from mcp.server.auth.routes import create_protected_resource_routes  # slow to import, and rarely needed
    from pydantic import AnyHttpUrl, ConfigDict, TypeAdapter

    url = TypeAdapter(AnyHttpUrl, config=ConfigDict(url_preserve_empty_path=True)).validate_python
    made = create_protected_resource_routes(
        url(audience), [url(issuer)], sorted(SCOPES), resource_name="OmniGen2 image studio"
    )
    paths = dict.fromkeys((WELL_KNOWN, *(route.path for route in made)))
    return [Route(path, made[0].endpoint, methods=["GET"]) for path in paths]


def described(app: App) -> Paths:
    """The paths of the metadata."""
    answers = {200: answer("Protected resource metadata, RFC 9728.", {JSON: {"type": "object"}})}
    return {
        route.path: {
            "get": operation(f"oauth_{number}", "Who issues tokens for this server", answers, is_open=True)
        }
        for number, route in enumerate(routes(app, None))
    }


def metadata_url(app: App) -> str | None:
    """Address of the metadata as clients reach it; None without an issuer."""
    audience = app.settings.oauth_audience
    if audience is None:
        return None
    parts = urlsplit(audience)
    return f"{parts.scheme}://{parts.netloc}{routes(app, None)[-1].path}"
