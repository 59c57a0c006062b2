"""Residency policies by name. Adding one is adding a file here and its import below."""

from pcmoe_det.committee.policies.all import All
from pcmoe_det.committee.policies.base import POLICIES, Policy, Swap, create_policy, register_policy
from pcmoe_det.committee.policies.magnitude_keep import MagnitudeKeep
from pcmoe_det.committee.policies.on_demand import OnDemand
from pcmoe_det.committee.policies.pcmoe import ParameterCommittee
from pcmoe_det.committee.policies.random_keep import RandomKeep

__all__ = [
    "POLICIES",
    "All",
    "MagnitudeKeep",
    "OnDemand",
    "ParameterCommittee",
    "Policy",
    "RandomKeep",
    "Swap",
    "create_policy",
    "register_policy",
]
