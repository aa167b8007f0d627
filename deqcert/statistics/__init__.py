"""The statistics of certification: counts in, bounds and certificates out.

numpy and scipy only; nothing here knows a model, a device or a training framework. Read :mod:`bounds` (the exact
confidence bounds), :mod:`sequential` (those that hold wherever sampling stops), :mod:`stopping` (when it does),
:mod:`input_specific` (how many samples suit an image), :mod:`votes` (the measurement of one image), :mod:`audit` (what
dependent predictions are worth), :mod:`certificate` (votes and alpha to class and radius), :mod:`refutation` (what
fresh votes say of a certificate) and :mod:`predict`, in this order.
"""

from __future__ import annotations

from deqcert.statistics.accuracy import false_certificates_upper
from deqcert.statistics.audit import (
    AdaptiveAudit,
    AuditSize,
    FixedAudit,
    anytime_effective_count,
    binomial_effective_count,
    exact_effective_count,
    published_p_a_lower,
    split_alpha,
)
from deqcert.statistics.bounds import (
    certified_radius,
    clopper_pearson_lower,
    clopper_pearson_upper,
    hypergeometric_upper,
)
from deqcert.statistics.certificate import ABSTAIN, AuditRule, Certificate, CertificationRule
from deqcert.statistics.input_specific import InputSpecific
from deqcert.statistics.noise_error import Noise, noise_error
from deqcert.statistics.predict import predict
from deqcert.statistics.refutation import claimed_probability
from deqcert.statistics.sequential import anytime_hypergeometric_upper, anytime_lower, anytime_upper
from deqcert.statistics.sequential_audit import SequentialAudit
from deqcert.statistics.stopping import AbsolutePrecision, RelativePrecision, Stopping, TargetRadius
from deqcert.statistics.votes import Votes

__all__ = [
    "ABSTAIN",
    "AbsolutePrecision",
    "AdaptiveAudit",
    "AuditRule",
    "AuditSize",
    "Certificate",
    "CertificationRule",
    "FixedAudit",
    "InputSpecific",
    "Noise",
    "RelativePrecision",
    "SequentialAudit",
    "Stopping",
    "TargetRadius",
    "Votes",
    "anytime_effective_count",
    "anytime_hypergeometric_upper",
    "anytime_lower",
    "anytime_upper",
    "binomial_effective_count",
    "certified_radius",
    "claimed_probability",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "exact_effective_count",
    "false_certificates_upper",
    "hypergeometric_upper",
    "noise_error",
    "predict",
    "published_p_a_lower",
    "split_alpha",
]
