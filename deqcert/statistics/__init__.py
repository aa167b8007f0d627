"""The statistics of certification: counts in, bounds and certificates out.

numpy and scipy only; nothing here knows a model, a device or a training framework. Read :mod:`bounds` (the exact
confidence bounds), :mod:`votes` (the measurement of one image), :mod:`stopping` (when it ends), :mod:`joint` and
:mod:`audit` (what dependent predictions are worth), :mod:`certificate` (votes and alpha to class and radius),
:mod:`claims` (what certificates claim, and what refutes one), :mod:`prediction`, :mod:`margins` (certificates without
noise) and :mod:`means` (means of anything that is cheap but possibly wrong), in this order.
"""

from __future__ import annotations

from deqcert.statistics.audit import (
    AdaptiveAudit,
    AuditSize,
    FixedAudit,
    exact_effective_count,
    split_alpha,
)
from deqcert.statistics.authors import binomial_effective_count, published_p_a_lower
from deqcert.statistics.bounds import (
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    hypergeometric_upper,
    radius_of_count,
    radius_of_robust_votes,
)
from deqcert.statistics.certificate import ABSTAIN, AuditRule, Certificate, CertificationRule
from deqcert.statistics.claims import claimed_probability, false_certificates_upper
from deqcert.statistics.joint import joint_p_a_lower, joint_p_b_upper
from deqcert.statistics.margins import MarginRule, Margins, Record
from deqcert.statistics.means import AuditedMean, audited_mean
from deqcert.statistics.noise_error import Noise, noise_error
from deqcert.statistics.prediction import predict
from deqcert.statistics.stopping import GroupSequential
from deqcert.statistics.votes import Cost, Sides, Votes, most_frequent

__all__ = [
    "ABSTAIN",
    "AdaptiveAudit",
    "AuditRule",
    "AuditSize",
    "AuditedMean",
    "Certificate",
    "CertificationRule",
    "Cost",
    "FixedAudit",
    "GroupSequential",
    "MarginRule",
    "Margins",
    "Noise",
    "Record",
    "Sides",
    "Votes",
    "audited_mean",
    "binomial_effective_count",
    "certified_radius",
    "claimed_probability",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "exact_effective_count",
    "false_certificates_upper",
    "hypergeometric_upper",
    "joint_p_a_lower",
    "joint_p_b_upper",
    "most_frequent",
    "noise_error",
    "predict",
    "published_p_a_lower",
    "radius_of_count",
    "radius_of_robust_votes",
    "split_alpha",
]
