"""The reading of network policies that other tests rely on, on cases worked out by hand from the rules of Kubernetes."""

from tests.deploy.manifests import Document
from tests.deploy.network import pod, reaches


def policy(*types: str, **spec: object) -> Document:
    return {"metadata": {"namespace": "a"}, "spec": {"podSelector": {"matchLabels": {"app": "x"}}, "policyTypes": list(types), **spec}}


CHOSEN, OTHER = pod("a", {"app": "x"}), pod("a", {"app": "y"})


def test_without_a_policy_everybody_reaches_everybody() -> None:
    assert reaches([], OTHER, CHOSEN, 1)


def test_a_policy_without_rules_closes_its_direction_and_no_other() -> None:
    assert not reaches([policy("Ingress")], OTHER, CHOSEN, 1)
    assert reaches([policy("Ingress")], CHOSEN, OTHER, 1)
    assert not reaches([policy("Egress", egress=[])], CHOSEN, OTHER, 1)


def test_a_pod_of_the_same_labels_elsewhere_is_not_chosen() -> None:
    assert reaches([policy("Ingress")], OTHER, pod("b", {"app": "x"}), 1)


def test_a_pod_selector_alone_means_the_policy_s_own_namespace() -> None:
    rules = [policy("Ingress", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "y"}}}]}])]
    assert reaches(rules, OTHER, CHOSEN, 1)
    assert not reaches(rules, pod("b", {"app": "y"}), CHOSEN, 1)


def test_both_selectors_of_one_peer_have_to_match_and_one_peer_is_enough() -> None:
    both = {"namespaceSelector": {"matchLabels": {"team": "t"}}, "podSelector": {"matchLabels": {"app": "y"}}}
    rules = [policy("Ingress", ingress=[{"from": [both, {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "c"}}}]}])]
    assert reaches(rules, pod("b", {"app": "y"}, team="t"), CHOSEN, 1)
    assert not reaches(rules, pod("b", {"app": "z"}, team="t"), CHOSEN, 1)
    assert not reaches(rules, pod("b", {"app": "y"}), CHOSEN, 1)
    assert reaches(rules, pod("c"), CHOSEN, 1)


def test_ports_are_those_named_and_the_range_up_to_the_end_port() -> None:
    rules = [policy("Ingress", ingress=[{"ports": [{"protocol": "TCP", "port": 5, "endPort": 7}, {"protocol": "UDP", "port": 9}]}])]
    assert [port for port in range(4, 10) if reaches(rules, OTHER, CHOSEN, port)] == [5, 6, 7]
    assert reaches(rules, OTHER, CHOSEN, 9, "UDP")


def test_what_any_policy_allows_is_allowed() -> None:
    rules = [policy("Ingress"), policy("Ingress", ingress=[{"ports": [{"protocol": "TCP", "port": 5}]}])]
    assert reaches(rules, OTHER, CHOSEN, 5)


def test_values_of_an_expression_are_alternatives() -> None:
    peer = {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["y", "z"]}]}}
    rules = [policy("Ingress", ingress=[{"from": [peer]}])]
    assert reaches(rules, OTHER, CHOSEN, 1)
    assert not reaches(rules, pod("a", {"app": "w"}), CHOSEN, 1)
