"""The main job as any client talks it: what is asked, and what must hold of the answers."""

from typing import Any

from mcp import Client

SMALL: dict[str, Any] = {"width": 32, "height": 32, "steps": 2, "seed": 1}


async def talk(client: Client) -> dict[str, Any]:
    """Generate, edit, compose, describe, history, replay: the structured content of each answer."""

    async def call(tool: str, **arguments: Any) -> dict[str, Any]:
        result = await client.call_tool(tool, arguments)
        assert not result.is_error, result.content
        return result.structured_content

    generated = await call("generate_image", prompt="a red circle", **SMALL)
    first = generated["images"][0]["id"]
    edited = await call("edit_image", image=first, instruction="make it blue", **SMALL)
    composed = await call(
        "compose_from_references",
        images=[first, edited["images"][0]["id"]],
        instruction="both side by side",
        **SMALL,
    )
    last = composed["images"][0]["id"]
    described = await call("describe_image", images=[last], question="What is in it?", max_tokens=4)
    history = await call("image_history", image=last)
    replayed = await call("generate_image", prompt="a red circle", **SMALL)
    return {
        "generated": generated,
        "edited": edited,
        "composed": composed,
        "described": described,
        "history": history,
        "replayed": replayed,
    }


def check(answers: dict[str, Any]) -> None:
    """Hold the structured contents of a conversation to what the server promises."""
    made = [answers[name]["images"][0]["id"] for name in ("generated", "edited", "composed")]
    assert len(set(made)) == 3
    assert isinstance(answers["described"]["text"], str)
    assert [step["image"]["id"] for step in answers["history"]["steps"]] == made
    assert answers["history"]["steps"][-1]["inputs"] == made[:2]
    assert answers["replayed"]["cached"]
    assert answers["replayed"]["images"] == answers["generated"]["images"]
