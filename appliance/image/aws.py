"""What must be there before an AMI is built: better a list here than a failure half-way on an instance."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

import boto3
from botocore.exceptions import BotoCoreError

from appliance.image.packer import MODERN, packer_version
from appliance.image.steps import StepError


@dataclass(frozen=True)
class Missing:
    """One thing that an AMI build lacks, and what to do about it."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


REQUIRED_VARIABLES = {
    "PKR_VAR_subnet_id": "the id of a private subnet from which Session Manager is reached (its endpoints)",
    "PKR_VAR_security_group_id": "the id of a security group without ingress in that subnet's VPC",
    "PKR_VAR_kms_key_id": "the ARN of the customer-managed key that encrypts the image",
    "PKR_VAR_region": "the AWS region of the subnet",
}


def missing() -> list[Missing]:
    """Return what an AMI build lacks on this host; empty if it can start."""
    found = []
    try:
        version = packer_version()
        if version < MODERN:
            said = ".".join(map(str, version))
            found.append(
                Missing(
                    f"Packer >= 1.10 (here {said}, which cannot enforce IMDSv2)",
                    "install HashiCorp's package",
                )
            )
    except StepError as error:
        found.append(Missing("Packer >= 1.10", str(error)))
    try:
        credentials = boto3.Session().get_credentials()
    except BotoCoreError as error:
        found.append(Missing("AWS credentials", f"mend the AWS configuration ({error})"))
    else:
        if credentials is None:
            found.append(Missing("AWS credentials", "run `aws sso login` and set AWS_PROFILE, or use a role"))
    if shutil.which("session-manager-plugin") is None:
        found.append(
            Missing("session-manager-plugin", "install AWS's package; the build instance has no open port")
        )
    for name, value in REQUIRED_VARIABLES.items():
        if not os.environ.get(name):
            found.append(Missing(name, f"set it to {value}"))
    return found
