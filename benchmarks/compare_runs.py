"""Compare finished runs and audit rules from their ledgers alone; no model is touched.

    python benchmarks/compare_runs.py FIGURE.png RUN_DIR [RUN_DIR ...]

Each directory holds the ``certificates.json`` of a run. Audited runs are certified by the exact and the published
rule, others as they are. Prints a Markdown table and draws the certified-accuracy curves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deqcert.report import automatic_radii, format_markdown, plot_curves, save_figure, summarize
from deqcert.statistics import CertificationRule, Votes


def main(figure: str, *directories: str) -> None:
    summaries, curves = {}, {}
    for directory in directories:
        report = json.loads((Path(directory) / "certificates.json").read_text())
        votes = [Votes.from_json({field: example[field] for field in Votes._fields}) for example in report["examples"]]
        alpha, sigma = report["settings"]["certificate"]["alpha"], report["settings"]["smoothing"]["sigma"]
        radii = automatic_radii(sigma, alpha, votes[0].n)
        audited = votes[0].audited is not None
        for rule in ("exact", "published") if audited else ("exact",):
            name = f"{Path(directory).name} {rule}" if audited else Path(directory).name
            certificates = [CertificationRule(alpha=alpha, audit=rule).certify(vote, sigma) for vote in votes]
            summaries[name] = summarize(certificates, votes, radii)
            curves[name] = certificates
    print(format_markdown(summaries))
    save_figure(plot_curves(curves), figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
