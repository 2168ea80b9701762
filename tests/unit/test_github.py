"""GitHub's way in: who is trusted, exactly, and what the two roles may do."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lab_constructs.github import AUDIENCE, ISSUER, subject
from tests.support.stacks import data_template, only
from training_image.config.lab_settings import LabConfig

NUMBERS = st.integers(min_value=1, max_value=10**12)
REPOSITORIES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9-]{0,9}/[A-Za-z0-9._-]{1,9}", fullmatch=True)
CONTEXTS = st.from_regex(r"(ref:refs/heads/|environment:)[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True)


def roles(config: LabConfig) -> dict[str, dict]:
    """``PushRole`` and ``DeployRole``: {"trust": its one statement, "allow": Sid -> statement}."""
    template = data_template(config)
    found = {}
    for logical_id, role in template.find_resources("AWS::IAM::Role").items():
        (trust,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        allow = {
            statement["Sid"]: statement
            for policy in template.find_resources("AWS::IAM::Policy").values()
            if policy["Properties"]["Roles"] == [{"Ref": logical_id}]
            for statement in policy["Properties"]["PolicyDocument"]["Statement"]
        }
        name = re.fullmatch(r"Github(\w+Role)[0-9A-F]{8}", logical_id)[1]
        found[name] = {"trust": trust, "allow": allow, "hours": role["Properties"]["MaxSessionDuration"] / 3600}
    return found


@pytest.fixture(scope="module")
def github() -> dict[str, dict]:
    return roles(LabConfig(github_repository="octo/lab"))


# --- subject ----------------------------------------------------------------------------------------------------------
def test_the_classic_form_is_spelled_as_github_spells_it():
    assert subject("octo/lab", "ref:refs/heads/main", None) == "repo:octo/lab:ref:refs/heads/main"


def test_the_immutable_form_carries_both_numbers():
    assert subject("octo/lab", "environment:training", (12, 345)) == "repo:octo@12/lab@345:environment:training"


@given(REPOSITORIES, CONTEXTS, st.none() | st.tuples(NUMBERS, NUMBERS))
def test_a_subject_is_one_text_that_names_repository_and_context(repository, context, ids):
    sub = subject(repository, context, ids)
    assert sub.startswith("repo:")
    assert sub.endswith(f":{context}")
    assert not set(sub) & set("*?$")
    assert re.sub(r"@\d+", "", sub) == f"repo:{repository}:{context}"


@given(REPOSITORIES, REPOSITORIES, CONTEXTS, st.tuples(NUMBERS, NUMBERS), st.tuples(NUMBERS, NUMBERS))
def test_two_repositories_never_share_a_subject(one, other, context, ids, other_ids):
    """Not even a renamed one and the stranger who took its old name: their numbers differ."""
    if (one, ids) != (other, other_ids):
        assert subject(one, context, ids) != subject(other, context, other_ids)


@pytest.mark.parametrize("key", ["github_repository", "github_branch", "github_environment"])
@given(st.text(max_size=8), st.sampled_from("*?$:@ \n"), st.text(max_size=8))
def test_no_pattern_and_no_separator_gets_into_the_settings(key, before, bad, after):
    value = f"octo/{before}{bad}{after}" if key == "github_repository" else f"a{before}{bad}{after}"
    with pytest.raises(ValidationError):
        LabConfig(**{key: value})


# --- trust ------------------------------------------------------------------------------------------------------------
def test_trust_is_exact_on_audience_and_subject(github):
    expected = {"PushRole": "repo:octo/lab:ref:refs/heads/main", "DeployRole": "repo:octo/lab:environment:training"}
    for name, sub in expected.items():
        trust = github[name]["trust"]
        assert trust["Action"] == "sts:AssumeRoleWithWebIdentity"
        assert trust["Condition"] == {"StringEquals": {f"{ISSUER}:aud": AUDIENCE, f"{ISSUER}:sub": sub}}
        assert list(trust["Principal"]) == ["Federated"]


def test_numbers_branch_and_environment_are_settings():
    config = LabConfig(
        github_repository="octo/lab", github_owner_id=12, github_repository_id=345,
        github_branch="release/2", github_environment="gpu",
    )  # fmt: skip
    found = roles(config)
    subs = {name: role["trust"]["Condition"]["StringEquals"][f"{ISSUER}:sub"] for name, role in found.items()}
    assert subs == {
        "PushRole": "repo:octo@12/lab@345:ref:refs/heads/release/2",
        "DeployRole": "repo:octo@12/lab@345:environment:gpu",
    }


def test_a_session_lasts_an_hour_at_most(github):
    assert [role["hours"] for role in github.values()] == [1, 1]


# --- what the roles may do --------------------------------------------------------------------------------------------
def test_the_push_role_pushes_to_the_labs_repository_and_nothing_else(github):
    allow = github["PushRole"]["allow"]
    assert set(allow) == {"LogsInToRegistry", "PushesImages"}
    assert (allow["LogsInToRegistry"]["Action"], allow["LogsInToRegistry"]["Resource"]) == (
        "ecr:GetAuthorizationToken",
        "*",
    )
    assert allow["PushesImages"]["Resource"] == {"Fn::GetAtt": ["RegistryRepositoryC6C96DCD", "Arn"]}
    assert all(re.fullmatch(r"ecr:[A-Za-z]+", action) for action in allow["PushesImages"]["Action"])
    assert not [action for action in allow["PushesImages"]["Action"] if "Delete" in action or "Policy" in action]


def test_the_deploy_role_may_only_assume_the_bootstraps_four_roles(github):
    (statement,) = github["DeployRole"]["allow"].values()
    assert statement["Action"] == "sts:AssumeRole"
    names = [json.dumps(arn) for arn in statement["Resource"]]
    assert len(names) == 4
    for kind, arn in zip(("deploy", "file-publishing", "image-publishing", "lookup"), names, strict=True):
        assert f":role/cdk-hnb659fds-{kind}-role-" in arn
        assert "*" not in arn


# --- the provider -----------------------------------------------------------------------------------------------------
def test_the_provider_is_native_without_thumbprints_and_kept():
    template = data_template(LabConfig(github_repository="octo/lab"))
    provider = only(template, "AWS::IAM::OIDCProvider")
    assert provider["Properties"] == {"ClientIdList": [AUDIENCE], "Url": f"https://{ISSUER}"}
    assert (provider["DeletionPolicy"], provider["UpdateReplacePolicy"]) == ("RetainExceptOnCreate", "Retain")
    template.resource_count_is("AWS::Lambda::Function", 0)


def test_a_provider_that_the_account_has_already_is_trusted_by_its_arn():
    config = LabConfig(github_repository="octo/lab", create_oidc_provider=False)
    data_template(config).resource_count_is("AWS::IAM::OIDCProvider", 0)
    for role in roles(config).values():
        parts = role["trust"]["Principal"]["Federated"]["Fn::Join"][1]
        assert parts[0] == "arn:"
        assert parts[1] == {"Ref": "AWS::Partition"}
        assert parts[-1] == f":oidc-provider/{ISSUER}"


def test_without_a_repository_nothing_of_github_is_made():
    template = data_template()
    template.resource_count_is("AWS::IAM::OIDCProvider", 0)
    template.resource_count_is("AWS::IAM::Role", 0)
