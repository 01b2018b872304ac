"""The part of the table that is about spec.model: where weights come from, with whose rights, and where they are kept.

What a source and a revision may be is said here once, for models, their drafts and adapters alike.
"""

from collections.abc import Mapping

from pagoda_operator.manifest.rules.predicates import Field, Rule, at_least, matches, one_of, only_with

_SECRET = Rule(matches("[a-z0-9]([-a-z0-9.]*[a-z0-9])?"), "write the name of a Secret of this namespace")
_CLAIM = "[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_SOURCES: Mapping[str, str] = {
    "builtin": "builtin://[a-z0-9-]+",
    "hf": "hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*",
    "s3": "s3://[a-z0-9][a-z0-9.-]+[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)+/?",
    "pvc": f"pvc://{_CLAIM}(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?",
    "file": "file://.+",
}
"""By scheme, what a source looks like."""
MODEL_SCHEMES = tuple(_SOURCES)
MODEL_SOURCES = "write builtin://NAME, hf://ORG/NAME, s3://BUCKET/PREFIX, pvc://CLAIM/FOLDER or file:///FOLDER"


def source_field(*schemes: str, otherwise: str) -> Field:
    """A source of one of these schemes, `file` among them; `otherwise`: the sentence for any other."""
    return Field(
        "string",
        (
            Rule(matches("|".join(_SOURCES[scheme] for scheme in schemes)), otherwise),
            Rule(
                lambda given: not given.startswith("file://") or given.startswith("file:///"),
                "write an absolute folder, file:///FOLDER: only `pagoda` on one machine takes a relative one",
            ),
        ),
        required=True,
        max_size=1024,
    )


REVISION = Field(
    "string",
    (Rule(matches("[A-Za-z0-9][A-Za-z0-9_-]*([./][A-Za-z0-9_-]+)*"), "write a branch, a tag or a commit of the hub, such as main"),),
    max_size=128,
)
REVISION_OF_A_HUB = Rule(only_with("revision", "hf"), "revision goes with hf:// sources only: remove it")
"""Of the object that has both."""

MODEL_FIELDS: Mapping[str, Field] = {
    "spec.model": Field(
        "object",
        (
            REVISION_OF_A_HUB,
            Rule(only_with("endpoint", "hf", "s3"), "endpoint goes with hf:// and s3:// sources only: remove it"),
            Rule(only_with("tokenSecretRef", "hf"), "tokenSecretRef goes with hf:// sources only: remove it"),
            Rule(only_with("credentialsSecretRef", "s3"), "credentialsSecretRef goes with s3:// sources only: remove it"),
            Rule(only_with("cache", "hf", "s3"), "cache goes with hf:// and s3:// sources only: remove it"),
        ),
        required=True,
    ),
    "spec.model.source": source_field(*MODEL_SCHEMES, otherwise=MODEL_SOURCES),
    "spec.model.revision": REVISION,
    "spec.model.endpoint": Field(
        "string",
        (
            Rule(
                matches("https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?(/[A-Za-z0-9._/-]*)?"),
                "write the address of the hub or of the S3 server, such as https://hub.example.com",
            ),
        ),
        max_size=256,
    ),
    "spec.model.tokenSecretRef": Field("object"),
    "spec.model.tokenSecretRef.name": Field("string", (_SECRET,), required=True, max_size=253),
    "spec.model.tokenSecretRef.key": Field(
        "string",
        (Rule(matches("[A-Za-z0-9._-]+"), "write the key of the Secret that holds the token"),),
        max_size=253,
    ),
    "spec.model.credentialsSecretRef": Field("object"),
    "spec.model.credentialsSecretRef.name": Field("string", (_SECRET,), required=True, max_size=253),
    "spec.model.cache": Field(
        "object",
        (
            Rule(
                lambda cache: ("claim" in cache) != ("size" in cache),
                "write size for a new volume, or claim for one that exists: one of the two",
            ),
            Rule(
                lambda cache: "claim" not in cache or not {"storageClass", "accessMode"} & cache.keys(),
                "storageClass and accessMode are those of the claim: remove them, or write size instead of claim",
            ),
        ),
    ),
    "spec.model.cache.claim": Field(
        "string",
        (Rule(matches(_CLAIM), "write the name of a PersistentVolumeClaim of this namespace"),),
        max_size=253,
    ),
    "spec.model.cache.size": Field("quantity", (Rule(at_least("1Mi"), "write at least 1Mi, with a unit, such as 50Gi"),), max_size=32),
    "spec.model.cache.storageClass": Field("string", (Rule(matches(_CLAIM), "write the name of a StorageClass"),), max_size=253),
    "spec.model.cache.accessMode": Field(
        "string",
        (Rule(one_of("ReadWriteMany", "ReadWriteOnce"), "write ReadWriteMany, or ReadWriteOnce when all workers run on one node"),),
        max_size=32,
    ),
}
