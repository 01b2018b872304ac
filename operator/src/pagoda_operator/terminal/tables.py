"""What `get` and `describe` print, as text. Pure: the supervisor's answers in, lines out. Called by commands.py."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import yaml

COLUMNS = ("NAME", "READY", "ROLLOUT", "MODEL", "REPLICAS", "ROUTED", "KV TOKENS", "ENDPOINT", "AGE")
_PLANNED = re.compile(r"\b(?P<kind>[A-Z]\w+) default/(?P<name>[\w.-]+)")
LONGEST_AGE_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"))


def table(objects: Sequence[Mapping[str, Any]], now: datetime) -> str:
    rows = [COLUMNS, *(_row(document, now) for document in objects)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def formatted(objects: Sequence[Mapping[str, Any]], output: str, *, single: bool) -> str:
    """As kubectl does: one object when one was named, else a List."""
    document = objects[0] if single else {"apiVersion": "v1", "kind": "List", "items": list(objects)}
    return json.dumps(document, indent=2) if output == "json" else yaml.safe_dump(document, sort_keys=False).rstrip()


def description(document: Mapping[str, Any], pods: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, str]], now: datetime) -> str:
    metadata, status = document["metadata"], document.get("status") or {}
    lines = [
        f"Name:      {metadata['name']}",
        f"Model:     {document['spec']['model']['source']}",
        f"Ready:     {status.get('ready', 'Unknown')}",
        f"Endpoint:  {status.get('endpoint', '')}",
        f"Served as: {', '.join(status.get('servedNames', ()))}",
        f"Age:       {age(metadata['creationTimestamp'], now)} (generation {metadata['generation']})",
        "",
        "Conditions:",
        *(f"  {c['type']:<14} {c['status']:<7} {c['reason']:<20} {c['message']}" for c in status.get("conditions", ())),
        "",
        *_sections(status, now),
        "Processes:",
        *(f"  {_process(pod)}" for pod in pods),
        "",
        "Events:",
        *(f"  {age(event['at'], now):>4} ago  {event['subject']}: {event['message']}" for event in events),
    ]
    return "\n".join(lines)


def events_of(document: Mapping[str, Any], events: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Without what was planned for other models, or for the namespace alone: roles and network policies that no machine has."""
    name = document["metadata"]["name"]
    variants = [each["name"] for each in (document.get("status") or {}).get("variants") or ()]
    own = {name, *(f"{name}-{variant}" for variant in variants)}

    def concerns(event: Mapping[str, str]) -> bool:
        planned = _PLANNED.search(event["message"]) if event["subject"] == "plan" else None
        return planned is None or planned["name"] in own or (planned["kind"] == "Deployment" and planned["name"] == "pagoda-router")

    return [event for event in events if concerns(event)]


def notes(document: Mapping[str, Any], *, has_gpu: bool) -> list[str]:
    """What a model that is ready should be known to lack."""
    conditions = {each["type"]: each for each in (document.get("status") or {}).get("conditions") or ()}
    told = [said for said in [conditions.get("Accepted", {}).get("message", "").partition("; ")[2]] if said]
    if (gpus := (document["spec"].get("resources") or {}).get("gpus") or 0) and not has_gpu:
        told.append(f"resources.gpus is {gpus} and this machine has no GPU: it runs on the CPU")
    return told


def age(since: str, now: datetime) -> str:
    seconds = max(0, int((now - datetime.fromisoformat(since)).total_seconds()))
    for size, unit in LONGEST_AGE_UNITS:
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


def now() -> datetime:
    return datetime.now(UTC)


def _row(document: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    status = document.get("status") or {}
    desired = (status.get("scaling") or {}).get("desired", status.get("replicas", 0))
    replicas = f"{status.get('readyReplicas', 0)}/{desired}"
    routed, kv_tokens = str(status.get("routedReplicas", 0)), str((status.get("capacity") or {}).get("kvTokens", ""))
    ready = status.get("ready", "Pending")
    if status.get("progress"):
        ready = f"{ready} {status['progress']}"
    model, metadata = document["spec"]["model"]["source"], document["metadata"]
    shown = (metadata["name"], ready, status.get("rollout", ""), model, replicas, routed, kv_tokens, status.get("endpoint", ""))
    return (*shown, age(metadata["creationTimestamp"], now))


def _sections(status: Mapping[str, Any], now: datetime) -> list[str]:
    """Each only when there is something in it, with an empty line after it."""
    sections = {
        "Capacity": _capacity(status.get("capacity") or {}),
        "Timeline": _timeline(status.get("timeline") or {}),
        "Variants": _variants(status.get("variants") or ()),
        "Scaling": _decisions((status.get("scaling") or {}).get("decisions") or (), now),
    }
    return [line for title, lines in sections.items() if lines for line in (f"{title}:", *(f"  {each}" for each in lines), "")]


def _capacity(told: Mapping[str, Any]) -> list[str]:
    if not told:
        return []
    speeds = f"{told['prefillTokensPerS']:g} tokens/s prefill, {told['decodeTokensPerS']:g} tokens/s decode"
    return [f"{told['kvTokens']} tokens of KV cache, sequences up to {told['maxModelLen']}, {speeds}"]


def _timeline(told: Mapping[str, str]) -> list[str]:
    """When, and how long after the step before."""
    lines, before = [], None
    for step, written in told.items():
        moment = datetime.fromisoformat(written)
        took = f"  +{(moment - before).total_seconds():.0f} s" if before is not None else ""
        lines.append(f"{step:<10} {written}{took}")
        before = moment
    return lines


def _variants(variants: Sequence[Mapping[str, Any]]) -> list[str]:
    return [f"{each['name']:<20} weight {each['weight']:<4} {each['ready']} of {each['desired']} ready" for each in variants]


def _decisions(decisions: Sequence[Mapping[str, Any]], now: datetime) -> list[str]:
    return [
        f"{age(each['time'], now):>4} ago  {each.get('variant', '')} {each['from']} → {each['to']}: {each['reason']}" for each in decisions
    ]


def _process(pod: Mapping[str, Any]) -> str:
    ports = " ".join(f"{name}:{port}" for name, port in pod["ports"].items())
    state = "ending" if pod["terminating"] else "ready" if pod["ready"] else pod["reason"] or "starting"
    line = f"{pod['name']:<20} {state:<18} pid {pod['pid'] or '-':<8} {ports:<28} restarts {pod['restarts']}"
    return f"{line}  {pod['message']}".rstrip() if not pod["ready"] else line
