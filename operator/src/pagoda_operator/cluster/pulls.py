"""Why an image cannot be pulled, kept while the kubelet waits for its next try. Pure; the store of pods calls it with each newer pod.

A try that failed shows as ErrImagePull with the registry's words, and the pause after it as ImagePullBackOff. Kubelets before 1.32 leave
the words away there (kubernetes#127918), which is nearly all of the time. Nothing of it is stored: after a start of the operator the next
try, at most five minutes later, tells them again.
"""

import re
from collections.abc import Mapping
from typing import Any

Object = Mapping[str, Any]

BACK_OFF, FAILED = "ImagePullBackOff", "ErrImagePull"
WORDLESS = re.compile('Back-off pulling image "[^"]*"')
LISTS = ("initContainerStatuses", "containerStatuses")


def with_words_of_last_try(before: Object, after: Object) -> Object:
    """`after`, where a container that backs off says why as its last try did: in the form that kubelets have from 1.32 on."""
    if before["metadata"].get("uid") != after["metadata"].get("uid"):
        return after
    told = {name: words for each in LISTS for name, words in _told(before, each)}
    lists = {each: [_with(told, status) for status in after["status"][each]] for each in LISTS if each in after["status"]} if told else {}
    return {**after, "status": {**after["status"], **lists}} if lists else after


def _told(pod: Object, where: str) -> list[tuple[str, str]]:
    found = []
    for status in pod["status"].get(where) or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        reason, message = waiting.get("reason"), waiting.get("message") or ""
        if reason == FAILED:
            found.append((status["name"], f": {FAILED}: {message}"))
        elif reason == BACK_OFF and (beginning := WORDLESS.match(message)):
            found.append((status["name"], message[beginning.end() :]))
    return found


def _with(told: Mapping[str, str], status: Object) -> Object:
    waiting = (status.get("state") or {}).get("waiting") or {}
    message = waiting.get("message") or ""
    if waiting.get("reason") != BACK_OFF or not WORDLESS.fullmatch(message) or status["name"] not in told:
        return status
    return {**status, "state": {**status["state"], "waiting": {**waiting, "message": message + told[status["name"]]}}}
