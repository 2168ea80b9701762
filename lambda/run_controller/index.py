"""The Lambda behind Custom::TrainingRun: starts a run on create and changed update, stops it on delete.

It always answers CloudFormation: whatever can fail to import is imported inside the try, and a stack that waits for an
answer would be blocked until its timeout. It answers a delete with success whatever happened, because a refusal would
keep billable resources alive; what is left over is named in the log.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

PHYSICAL_ID = "training-run"  # constant: a changed id would turn an update into a replacement, i.e. a delete


def handler(event: dict[str, Any], context: Any) -> None:
    """Entry point; ``context`` tells how much time is left."""
    status, reason = "SUCCESS", ""
    data: dict[str, str] = {}
    try:
        import edge

        data = edge.serve(event, context.get_remaining_time_in_millis)
    except Exception as error:
        print(f"{event['RequestType']} failed: {error!r}")
        if event["RequestType"] != "Delete":
            status, reason = "FAILED", str(error)
    answer = {
        "Status": status,
        "Reason": reason,
        "PhysicalResourceId": PHYSICAL_ID,
        "StackId": event["StackId"],
        "RequestId": event["RequestId"],
        "LogicalResourceId": event["LogicalResourceId"],
        "Data": data,
    }
    request = urllib.request.Request(  # noqa: S310 the URL is CloudFormation's own
        event["ResponseURL"], data=json.dumps(answer).encode(), method="PUT", headers={"Content-Type": ""}
    )
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
