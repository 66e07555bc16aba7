"""Principals of a soak: as many tokens as asked for, each used alike, and what the server did for each.

All clients do the same mix of things; a third of what they do is to ask for a picture and leave. So every
principal asks for the same, and must be served the same, within `MOST_UNFAIR`. What `/metrics` counted must
be what the clients counted, but for the calls that they left, whose end they did not see.
"""

from collections import Counter

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.soak_clients import FRIENDLY, TOOLS, Behaviour, Client, Tally

MOST_UNFAIR = 1.5
"""Maximum ratio between what the best and the worst served principal got."""
MODEL_TOOLS = ("generate_image", "edit_image", "compose_from_references", "describe_image")
MIXED: dict[Behaviour, float] = FRIENDLY | {Client.hang_up: 8, Client.leave_events: 5}
"""A third of the weight is on leaving."""
LEFT = ("hung up", "left events")
"""What clients say of the calls that they left."""


def tokens(count: int) -> dict[str, str]:
    """A token for each of `count` principals."""
    return {f"principal{number}": f"token-of-principal-{number:08}" for number in range(count)}


def unfair(tally: Tally, principals: list[str]) -> list[str]:
    """Print what each principal was served; what of it is unfair."""
    served: Counter[str] = Counter(dict.fromkeys(principals, 0))
    refused: Counter[str] = Counter()
    for (principal, path, status), times in tally.routes.items():
        if path.removeprefix(TOOLS) in MODEL_TOOLS:
            (served if status == 200 else refused)[principal] += times
    ratio = max(served.values()) / max(1, min(served.values()))
    for principal in principals:
        print(f"{principal}: {served[principal]} calls of the model answered, {refused[principal]} refused")
    print(f"fairness: the best served got {ratio:.2f} times what the worst served got")
    return [f"unfair by a factor of {ratio:.2f}"] if ratio > MOST_UNFAIR else []


def wrong_metrics(url: str, token: str, tally: Tally) -> list[str]:
    """Compare `/metrics` with what the clients counted; what does not add up."""
    answer = httpx.get(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    answer.raise_for_status()
    counted: Counter[tuple[str, int]] = Counter()
    left = 0
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            if sample.name == "omnigen2_http_answers_total" and sample.labels["route"].startswith(TOOLS):
                if sample.labels["status"].isdecimal():
                    counted[sample.labels["route"], int(sample.labels["status"])] += int(sample.value)
                else:
                    left += int(sample.value)
    seen: Counter[tuple[str, int]] = Counter()
    for (_, path, status), times in tally.routes.items():
        seen[path, status] += times
    missing = {what: times - counted[what] for what, times in seen.items() if times > counted[what]}
    more = sum((counted - seen).values()) + left
    gone = sum(tally.answers[word] for word in LEFT)
    total = sum(counted.values()) + left
    print(f"/metrics: {total} answers of tools; the clients saw {sum(seen.values())}", end=" ")
    print(f"and left {gone} calls, of which the server counted {more}")
    wrong = [f"/metrics lacks {missing}"] if missing else []
    return wrong + ([f"/metrics has {more} answers that nobody asked for"] if more > gone else [])
