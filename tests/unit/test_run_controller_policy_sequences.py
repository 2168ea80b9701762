"""The run controller through whatever CloudFormation may ask, twice or late, and whatever may become of the instance.

Policy, edge and handler are the real ones; AWS is in memory. The machine plays CloudFormation: an update that fails, or
is followed by the failure of another resource, is rolled back; a create that fails is deleted.
"""

import io
import json

import edge
import index
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.controller import SPEC, Fakes
from tests.support.examples import examples
from training_image.core import contract

OTHER = {**SPEC, "settings": {"training": {"seed": 2}}}
SPECS = st.sampled_from(
    [
        SPEC,
        OTHER,
        {**SPEC, "create_instance": False},
        {**OTHER, "create_instance": False},
        {**SPEC, "max_runtime_hours": 5},
        {**OTHER, "auto_shutdown": False},
        {**SPEC, "new_run": "again"},
    ]
)


class Context:
    @staticmethod
    def get_remaining_time_in_millis():
        return 60_001  # no time to wait for an instance


class Stack(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.aws = Fakes()
        self.answers = []
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr(edge.boto3, "client", self.aws.client)
        self.patches.setattr(edge, "POLL_SECONDS", 0)
        self.patches.setattr(index.urllib.request, "urlopen", self.answer)
        self.deployed = None
        self.requests = 0
        self.latest = None
        self.started_a_run = []
        self.pointed_at = set()

    def teardown(self):
        self.patches.undo()

    def answer(self, request, timeout):
        self.answers.append(json.loads(request.data)["Status"])
        return io.BytesIO()

    # --- what is there ------------------------------------------------------------------------------------------------
    @property
    def pointer(self):
        found = self.aws.s3.objects.get(contract.pointer_key(SPEC["stack_suffix"]))
        return json.loads(found)["run_id"] if found else None

    def ended(self, run_id):
        return contract.RunKeys(run_id).outcome in self.aws.s3.objects

    @property
    def active(self):
        """The run that has, or is to have, an instance."""
        wanted = self.aws.autoscaling.group["DesiredCapacity"] > 0
        return self.pointer if wanted and self.pointer and not self.ended(self.pointer) else None

    def snapshot(self):
        return self.pointer, self.aws.s3.runs(), dict(self.aws.autoscaling.group), list(self.aws.autoscaling.actions)

    # --- CloudFormation -----------------------------------------------------------------------------------------------
    def ask(self, kind, spec, old=None, *, rolling_back=False, throttled=False):
        """Deliver a new request; whether it was answered with success."""
        self.requests += 1
        event = {"RequestType": kind, "RequestId": f"request-{self.requests}", "StackId": "stack"}
        event |= {"LogicalResourceId": "l", "ResponseURL": "https://answer.invalid/"}
        event["ResourceProperties"] = {"Spec": json.dumps(spec)}
        if old is not None:
            event["OldResourceProperties"] = {"Spec": json.dumps(old)}
        self.latest = (event, rolling_back)
        before = self.pointer
        answer = self.deliver(event, rolling_back, throttled=throttled)
        if self.pointer != before:
            self.started_a_run.append(self.latest)
        return answer == "SUCCESS"

    def deliver(self, event, rolling_back, *, throttled=False):
        self.answers.clear()
        self.aws.status = "UPDATE_ROLLBACK_IN_PROGRESS" if rolling_back else "UPDATE_IN_PROGRESS"
        self.aws.autoscaling.fails = throttled
        index.handler(event, Context)
        self.aws.autoscaling.fails = False
        (answer,) = self.answers
        self.pointed_at |= {self.pointer} - {None}
        return answer

    def remove(self):
        assert self.ask("Delete", self.deployed), "a delete always succeeds"
        assert self.aws.autoscaling.group["DesiredCapacity"] == 0
        assert self.pointer is None or self.ended(self.pointer)
        self.deployed, self.latest, self.started_a_run = None, None, []  # the function goes with the stack

    @precondition(lambda self: self.deployed is None)
    @rule(spec=SPECS, throttled=st.booleans())
    def create(self, spec, throttled):
        self.deployed = spec
        if not self.ask("Create", spec, throttled=throttled):
            assert throttled
            self.remove()

    @precondition(lambda self: self.deployed is not None)
    @rule(spec=SPECS, throttled=st.booleans(), another_resource_fails=st.booleans())
    def update(self, spec, throttled, another_resource_fails):
        if spec == self.deployed:
            return  # CloudFormation asks only about what has changed
        before, active = self.snapshot(), self.active
        succeeded = self.ask("Update", spec, self.deployed, throttled=throttled)
        if succeeded and not another_resource_fails:
            self.deployed = spec
            return
        if not succeeded and not throttled:
            assert active is not None, "nothing else is refused"
            assert self.snapshot() == before
        left = self.active
        assert self.ask("Update", self.deployed, spec, rolling_back=True), "a refused rollback would block the stack"
        if active is not None and left == active:
            assert self.active == active, "it was there before the update, and goes on"
        else:
            assert self.active is None, "what the failed update started is ended, and nothing else is started"

    @precondition(lambda self: self.deployed is not None)
    @rule()
    def delete(self):
        self.remove()

    @precondition(lambda self: self.latest is not None)
    @rule()
    def deliver_again(self):
        before = set(self.runs()), self.active
        self.deliver(*self.latest)
        assert (set(self.runs()), self.active) == before

    @precondition(lambda self: len(self.started_a_run) > 0)
    @rule(data=st.data())
    def deliver_late(self, data):
        """A start that was delivered before, after all that has happened since."""
        before = set(self.runs()), self.active
        self.deliver(*data.draw(st.sampled_from(self.started_a_run)))
        assert (set(self.runs()), self.active) == before

    def runs(self):
        return [key for key in self.aws.s3.objects if key.endswith("/run.json")]

    # --- the instance
    # ------------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.aws.autoscaling.group["DesiredCapacity"] > 0)
    @rule()
    def box_comes(self):
        self.aws.autoscaling.group["Instances"] = [{"InstanceId": "i-1"}]

    @precondition(lambda self: self.active is not None)
    @rule(stays=st.booleans())
    def run_ends(self, stays):
        self.latest = None  # what follows is no longer the same situation
        self.aws.s3.objects[contract.RunKeys(self.active).outcome] = b'{"reason": "succeeded"}'
        if not stays:
            self.aws.autoscaling.update_auto_scaling_group("", MinSize=0, MaxSize=1, DesiredCapacity=0)

    @precondition(lambda self: self.active is not None)
    @rule()
    def capacity_is_taken_away(self):
        self.latest = None
        self.aws.autoscaling.update_auto_scaling_group("", MinSize=0, MaxSize=0, DesiredCapacity=0)

    @invariant()
    def never_two_active_runs(self):
        assert self.aws.autoscaling.group["MaxSize"] <= 1
        assert all(self.ended(run_id) for run_id in self.pointed_at - {self.pointer})


Stack.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=25)
test_any_sequence = Stack.TestCase
