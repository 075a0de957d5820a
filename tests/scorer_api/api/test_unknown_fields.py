"""Which fields of a body are misspelled ones of ours."""

import pytest

from scorer_api.api.route_schemas import RouteRequest
from scorer_api.api.unknown_fields import NAMES_MAX, misspelled

OWN = RouteRequest.__struct_fields__
# Chat completions, completions, embeddings and responses of OpenAI, vLLM, SGLang and OpenRouter.
FOREIGN = """
audio background best_of cache_control conversation dimensions echo encoding_format frequency_penalty function_call functions guided_choice
guided_json ignore_eos include include_reasoning include_stop_str_in_output input input_ids instructions kv_transfer_params length_penalty
logit_bias logprobs lora_path max_completion_tokens max_output_tokens max_tokens media_io_kwargs metadata min_p min_tokens modalities mode
models n parallel_tool_calls prediction presence_penalty previous_response_id priority prompt_cache_key prompt_logprobs provider reasoning
regex repetition_penalty request_id response_format return_hidden_states return_token_ids route safety_identifier seed service_tier
skip_special_tokens spaces_between_special_tokens stop stop_token_ids store stream stream_options structured_outputs suffix system
temperature text thinking tool_choice tool_ids top_k top_logprobs top_p transforms truncate_prompt_tokens truncation usage use_beam_search
user verbosity web_search_options chat_id
"""


def test_no_field_of_other_apis_is_one() -> None:
    assert [name for name in FOREIGN.split() if misspelled([name], OWN) is not None] == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *[("token_id", "token_ids"), ("tokenIds", "token_ids"), ("token-ids", "token_ids"), ("TOKEN_IDS", "token_ids"), ("tokne_ids", "token_ids")],
        *[("modle", "model"), ("pod", "pods"), ("limits", "limit"), ("polcy", "policy"), ("sessionId", "session_id"), ("excludes", "exclude")],
        *[("output_token_expeced", "output_tokens_expected"), ("blok_hashs", "block_hashes"), ("chat_template_kwarg", "chat_template_kwargs")],
    ],
)
def test_one_that_is_nearly_ours_is(name: str, meant: str) -> None:
    assert misspelled(["temperature", name], OWN) == (name, meant)


@pytest.mark.parametrize("name", ["podium", "ls", "", "bloc_hshs", "é", "m" * 10_000, *OWN])
def test_others_are_not_and_our_own_are_none(name: str) -> None:
    assert misspelled([name], OWN) is None


def test_of_very_many_names_the_first_are_looked_at() -> None:
    many = [f"x{number}" for number in range(NAMES_MAX)]
    assert misspelled([*many[:-1], "limits"], OWN) == ("limits", "limit")
    assert misspelled([*many, "limits"], OWN) is None
