"""A plugin with a bit of everything else: content, progress, a prompt, a resource and a route."""

import random
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import Field
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from server.app import App
from server.caller import Caller
from server.hookspecs import hookimpl
from server.offers import Argument, Prompt, Resource
from tools.base import Block, Context, Embedded, Request, Result, Tool


class RollDice(Request):
    """How many dice to roll."""

    dice: int = Field(default=2, ge=1, le=100)
    """Number of dice."""


class Rolled(Result):
    """What the dice show."""

    values: list[int]

    def line(self) -> str:
        return f"Rolled {sum(self.values)}."

    def blocks(self) -> tuple[Block, ...]:
        return (Embedded("dice://values", "text/csv", ",".join(map(str, self.values))),)


async def roll(request: RollDice, context: Context) -> Rolled:
    """Roll one die after the other."""
    values: list[int] = []
    for number in range(1, request.dice + 1):
        values.append(random.randint(1, 6))
        await context.progress(number, request.dice, "roll")
    return Rolled(values=values)


TOOL = Tool(
    name="roll_dice",
    command="roll",
    title="Roll dice",
    description="Roll some dice, and give the value of each. Use it wherever chance is to decide.",
    request=RollDice,
    result=Rolled,
    run=roll,
)


async def rules(variables: Mapping[str, str]) -> str:
    """The content of a resource; a template's variables would be in `variables`."""
    return "A die shows 1 to 6."


@hookimpl
def register_tools(register: Callable[[Tool[Any, Any]], None]) -> None:
    register(TOOL)


@hookimpl
def register_prompts(register: Callable[[Prompt], None]) -> None:
    text = "Roll the dice as often as there are players: $players. The highest sum begins."
    register(
        Prompt("who_begins", "Who begins?", "Dice decide.", (Argument("players", "How many", "2"),), text)
    )


@hookimpl
def register_resources(register: Callable[[Resource], None]) -> None:
    register(Resource("dice://rules", "rules", "Rules", "What dice show.", "text/plain", rules))


@hookimpl
def register_routes(
    register: Callable[[Route], None], app: App, caller: Callable[[HttpRequest], Caller]
) -> None:
    async def rolled(request: HttpRequest) -> JSONResponse:
        result = await app.call(TOOL, dict(request.query_params), caller(request))
        return JSONResponse({"for": caller(request).principal, "said": result.summary()})

    register(Route("/dice", rolled))
