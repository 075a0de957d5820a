"""What other indexers call a pod and a model. Pure.

They keep apart what has one model's name: by routing group or by tenant. Here that is another model, `model@group`. Dynamo's instances are numbers:
a pod whose name is one is that instance, any other pod has a number made of its name.
"""

from xxhash import xxh3_64_intdigest

DEFAULT_GROUP = "default"
SEPARATOR = "@"
# A number of a name has so many bits that JSON in every language keeps it.
NUMBER_BITS = 53
INSTANCE_MAX = 2**64 - 1


def model_of(name: str, group: str) -> str:
    """Our name of a model in a routing group, or of a tenant."""
    return name if group == DEFAULT_GROUP else f"{name}{SEPARATOR}{group}"


def name_and_group(model: str) -> tuple[str, str]:
    """The same backwards: a model without a group is in the default one."""
    name, separator, group = model.rpartition(SEPARATOR)
    return (name, group) if separator and name and group else (model, DEFAULT_GROUP)


def instance_of(pod: str) -> int:
    """The number of a pod."""
    if pod.isascii() and pod.isdecimal() and str(int(pod)) == pod and int(pod) <= INSTANCE_MAX:
        return int(pod)
    return xxh3_64_intdigest(pod.encode()) >> (64 - NUMBER_BITS)
