"""The measurement of one image in parts: labels of each chain, its share of the audit, and the votes they make.

The copies of an image may be split into chains with noise of their own, so that several processes can share one
image. The base classifier's labels of all n copies stay independent, so #{Y = A} stays Binomial(n, p_A); the cheap
labels may depend on each other within a chain or not at all; and the audit is one uniformly random subset of the
copies of *all* chains with S = A, of which each chain labels those that are its own. The proof of
:mod:`~deqcert.statistics.certificate` asks for nothing else.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deqcert.errors import DataError
from deqcert.statistics.records import expect, fields_of, is_count, is_number
from deqcert.statistics.votes import Votes

Labels = NDArray[np.signedinteger[Any]]


def label_type(classes: int) -> np.dtype[np.signedinteger[Any]]:
    """Return the smallest signed integer type of labels -1, 0, ..., ``classes`` - 1, from int16 on."""
    return np.dtype(np.int16) if classes <= 2**15 else np.dtype(np.int32)


class ChainLabels(NamedTuple):
    """The labels of one chain.

    Attributes:
        index: Position of the image in its data set.
        chain: Number of the chain, from 0; the first one selects the class.
        selection: C counts of the selection copies; zeros in other chains.
        labels: Class of each estimation copy, -1 where a logit is not finite, shape (copies,), of :func:`label_type`.
        nfe: Evaluations of the DEQ cell that the labels are made of, selection included, summed over copies.
        residual: Mean relative residual of the estimation solves; nan if the classifier is no DEQ.
        seconds: Wall-clock time.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    chain: int
    selection: tuple[int, ...]
    labels: Labels
    nfe: int
    residual: float
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return a dict that strict JSON can hold; the labels are packed."""
        stored = self.labels.astype(_stored_type(self.selection), casting="safe")
        packed = base64.b64encode(zlib.compress(stored.tobytes())).decode()
        residual = self.residual if math.isfinite(self.residual) else None
        return {**self._asdict(), "labels": packed, "residual": residual}

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> ChainLabels:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: A field is missing, unknown, of the wrong type or inconsistent with another.
        """
        values = fields_of(cls, record, "labels of a chain")
        part = cls(**values)
        for field in ("index", "chain", "nfe"):
            expect(part, field, is_count(getattr(part, field)), "an integer >= 0")
        counts = part.selection
        expect(part, "selection", isinstance(counts, tuple) and all(map(is_count, counts)), "integers >= 0")
        try:
            packed = zlib.decompress(base64.b64decode(values["labels"], validate=True))
            labels = np.frombuffer(packed, dtype=_stored_type(counts)).astype(label_type(len(counts)))
        except (TypeError, ValueError, zlib.error) as error:
            raise DataError(f"labels of a chain: labels cannot be unpacked ({error})") from error
        part = part._replace(labels=labels)
        expect(part, "labels", len(part.labels) > 0 and part.labels.min() >= -1, "at least one, each >= -1")
        expect(part, "labels", part.labels.max() < len(counts), f"below {len(counts)} classes")
        expect(part, "residual", is_number(part.residual) and not part.residual < 0, "a number >= 0, or nan")
        expect(part, "seconds", is_number(part.seconds) and 0 <= part.seconds < math.inf, "a finite number >= 0")
        return part


def _stored_type(selection: Sequence[int]) -> np.dtype[np.signedinteger[Any]]:
    """Return the type of packed labels of as many classes as ``selection`` counts: little-endian."""
    stored: np.dtype[np.signedinteger[Any]] = label_type(len(selection)).newbyteorder("<")
    return stored


class ChainAudit(NamedTuple):
    """A chain's share of the audit, or of its first copies.

    Attributes:
        index: Position of the image in its data set.
        chain: Number of the chain.
        audited: Copies of this chain in the audit subset.
        mismatches: Those of them that the base classifier does not classify A.
        nfe: Evaluations of the DEQ cell, summed over copies.
        seconds: Wall-clock time.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    chain: int
    audited: int
    mismatches: int
    nfe: int
    seconds: float

    def to_json(self) -> dict[str, object]:
        """Return a dict that strict JSON can hold."""
        return self._asdict()

    def extended(self, more: ChainAudit) -> ChainAudit:
        """Add what was found in further copies of the same chain."""
        return self._replace(
            audited=self.audited + more.audited,
            mismatches=self.mismatches + more.mismatches,
            nfe=self.nfe + more.nfe,
            seconds=self.seconds + more.seconds,
        )

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> ChainAudit:
        """Read what :meth:`to_json` wrote.

        Raises:
            DataError: A field is missing, unknown, of the wrong type or inconsistent with another.
        """
        part = cls(**fields_of(cls, record, "audit of a chain"))
        for field in ("index", "chain", "audited", "mismatches", "nfe"):
            expect(part, field, is_count(getattr(part, field)), "an integer >= 0")
        expect(part, "mismatches", part.mismatches <= part.audited, f"at most {part.audited} audited copies")
        expect(part, "seconds", is_number(part.seconds) and 0 <= part.seconds < math.inf, "a finite number >= 0")
        return part


def selected_class(labels: Sequence[ChainLabels]) -> int:
    """The class A that the first chain has selected, the lowest of the most frequent ones."""
    counts = labels[0].selection
    return counts.index(max(counts))


def join_chains(
    label: int,
    n0: int,
    labels: Sequence[ChainLabels],
    audits: Sequence[ChainAudit] | None,
    anytime: bool = False,
    *,
    sigma: float,
    noise_error: float,
) -> Votes:
    """Add up all chains of one image.

    Args:
        label: True class.
        n0: Selection copies.
        labels: The labels of every chain, in the order of their numbers.
        audits: Their shares of the audit, in the same order; None if the labels need no audit.
        anytime: Whether the labels, or those of the audit, decided how many there are; only of a single chain.
        sigma: Standard deviation of the noise that was labelled.
        noise_error: How far that noise may be from exact; see :class:`~deqcert.statistics.votes.Votes`.

    Returns:
        The votes.
    """
    given = np.concatenate([each.labels for each in labels])
    classes = len(labels[0].selection)
    return Votes(
        index=labels[0].index,
        label=label,
        n0=n0,
        n=len(given),
        selection=labels[0].selection,
        estimation=tuple(np.bincount(given[given >= 0], minlength=classes).tolist()),
        audited=None if audits is None else sum(each.audited for each in audits),
        mismatches=sum(each.mismatches for each in audits or ()),
        nfe_fast=sum(each.nfe for each in labels),
        nfe_audit=sum(each.nfe for each in audits or ()),
        residual=sum(each.residual * len(each.labels) for each in labels) / len(given),
        seconds=sum(each.seconds for each in labels) + sum(each.seconds for each in audits or ()),
        sigma=sigma,
        noise_error=noise_error,
        anytime=anytime,
    )
