"""``deqcert attack``: does any attack refute a certificate?"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from deqcert.attacks import (
    Campaign,
    CampaignSummary,
    Outcome,
    SmoothedAttack,
    Target,
    campaign_table,
    finding_lines,
    found_violation,
    summarize_campaign,
)
from deqcert.cli.arguments import parse_with_settings
from deqcert.cli.certified_model import CertifiedModel, certified_model
from deqcert.cli.verify import print_verification
from deqcert.errors import require_count
from deqcert.files import write_atomically
from deqcert.implicit import GradientEstimator, ImplicitAdjoint, OneStep
from deqcert.report import format_text
from deqcert.runs import automatic_radii, verify_run
from deqcert.statistics import Certificate
from deqcert.version import __version__

_GRADIENTS: dict[str, GradientEstimator] = {"implicit": ImplicitAdjoint(), "one_step": OneStep()}


def run_attack(args: Sequence[str]) -> int:
    """Verify a run, attack its certificates, print what was found and write ``attack.json`` beside them.

    Args:
        args: Arguments after the verb.

    Returns:
        1 if a file of the run does not follow from its votes, in which case nothing is attacked, or if a sound
        certificate is refuted; otherwise 0.
    """
    parsed, overrides = parse_with_settings(_parser(), args)
    require_count("images", parsed.images, minimum=1)
    attack = SmoothedAttack(parsed.steps, parsed.samples, parsed.restarts, _GRADIENTS[parsed.gradient])
    radii = (0.0,) if parsed.radii is None else tuple(parsed.radii)
    campaign = Campaign(attack, radii, tuple(parsed.factors), parsed.n, parsed.alpha_attack)
    if not _follows(parsed.run):
        print(f"{parsed.run}: not attacked, since that would say nothing about these files")
        return 1
    model = certified_model(parsed.run, parsed.device, overrides)
    if parsed.radii is None:
        campaign = dataclasses.replace(campaign, radii=_reported_radii(model))
    certificates = model.certificates[: parsed.images]
    outcomes = _attack(campaign, model, certificates, parsed.seed)
    summary = summarize_campaign(campaign, certificates, outcomes, model.rule.alpha)

    path = Path(parsed.run) / "attack.json"
    write_atomically(path, _document(parsed, campaign, model, summary, outcomes))
    print(
        f"attacked: the votes in the ledger (sha256 {model.votes_sha256}), certified again at alpha = "
        f"{model.rule.alpha:g}, audit rule {model.rule.audit}"
    )
    print(format_text(campaign_table(summary)))
    print(
        f"{summary.images} images of {parsed.run} ({model.sampling.name(model.g.base)}), "
        f"{summary.certified} of them certified and attacked; "
        f"PGD of {attack.steps} steps on {attack.samples} noise vectors, {campaign.n} fresh noisy samples; {path}"
    )
    print("\n".join(finding_lines(summary, outcomes)))
    return int(found_violation(outcomes))


def _parser() -> argparse.ArgumentParser:
    defaults, search = Campaign(), SmoothedAttack()
    parser = argparse.ArgumentParser(
        prog="deqcert attack",
        description="Attack the smoothed classifier of a run by projected gradient descent inside and outside of the "
        "certified radii, and test each point that was found on fresh noise. Prints empirical robust accuracy beside "
        "certified accuracy, writes RUN/attack.json, and ends with code 1 if a sound certificate is refuted. Begins "
        "with deqcert verify: a run whose files do not follow from its votes is not attacked and ends with code 1 too.",
        epilog="Model, data and smoothing are built from RUN/certify.yaml, whose relative paths are relative to the "
        "working directory; further options are those of deqcert certify and replace what it says, "
        "e.g. --ckpt_path FILE or --data.root DIR. Other weights or data than the certified ones are refused.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("run", metavar="RUN", help="directory of a run, its ledger_dir")
    option("--images", type=int, default=20, metavar="N", help="first N images of the run (%(default)s)")
    option("--radii", type=float, nargs="*", metavar="R", help="l2 radii; default: those of the run")
    inside = f"radii in units of each certified radius, below 1 inside of it ({' '.join(map(str, defaults.factors))})"
    option("--factors", type=float, nargs="*", default=defaults.factors, metavar="F", help=inside)
    option("--steps", type=int, default=search.steps, help="gradient steps (%(default)s)")
    option("--samples", type=int, default=search.samples, help="noise vectors inside of the attack (%(default)s)")
    option("--restarts", type=int, default=search.restarts, help="attacks with other noise (%(default)s)")
    through = "gradient through the fixed point (%(default)s)"
    option("--gradient", choices=sorted(_GRADIENTS), default="implicit", help=through)
    option("--n", type=int, default=defaults.n, help="fresh noisy samples of each point (%(default)s)")
    wrong = "probability that any true certificate is refuted (%(default)s)"
    option("--alpha_attack", type=float, default=defaults.alpha, help=wrong)
    option("--seed", type=int, default=0, help="seed of attack and fresh noise (%(default)s)")
    option("--device", choices=["cpu", "cuda"], help="default: that of the run")
    return parser


def _follows(run: str) -> bool:
    """Verify a run, unless it has not finished; return whether nothing was found that contradicts its votes."""
    if (Path(run) / "certificates.json").exists():
        return print_verification(run, verify_run(run)) != 1
    print(f"{run}: has no certificates.json to verify; the votes that its ledger has so far are attacked")
    return True


def _reported_radii(model: CertifiedModel) -> tuple[float, ...]:
    return tuple(model.radii or automatic_radii(model.g.sigma, model.rule.alpha, model.sampling.n))


def _attack(campaign: Campaign, model: CertifiedModel, certificates: Sequence[Certificate], seed: int) -> list[Outcome]:
    positions = {index: position for position, index in enumerate(model.examples.indices)}
    images = [model.examples[positions[each.index]][0].to(model.device) for each in certificates]
    outcomes: list[Outcome] = []
    with model.precision_context:
        target = Target(model.g, images[0], seed)
        with tqdm(desc="attack", total=len(images), unit="image", dynamic_ncols=True) as bar:
            for found in campaign.run(target, images, certificates):
                outcomes += found
                bar.set_postfix(refuted=sum(each.violation for each in outcomes), refresh=False)
                bar.update()
    return outcomes


def _document(
    parsed: argparse.Namespace,
    campaign: Campaign,
    model: CertifiedModel,
    summary: CampaignSummary,
    outcomes: Sequence[Outcome],
) -> bytes:
    """Return ``{"settings": …, "run": …, "summary": …, "attacks": […]}`` as strict JSON, one attack per line."""
    settings = {name: getattr(parsed, name) for name in ("images", "steps", "samples", "restarts", "gradient", "n")} | {
        "radii": campaign.radii,
        "factors": campaign.factors,
        "alpha_attack": campaign.alpha,
        "seed": parsed.seed,
        "device": model.device.type,
        "version": __version__,
        "votes_sha256": model.votes_sha256,
        "certificate": dataclasses.asdict(model.rule),
    }
    records = summary._asdict() | {"radii": [row._asdict() for row in summary.radii]}
    lines = ",\n".join(json.dumps(outcome.to_json(), allow_nan=False) for outcome in outcomes)
    return (
        f'{{\n"settings": {json.dumps(settings, indent=2, allow_nan=False)},\n'
        f'"run": {json.dumps(model.identity, indent=2)},\n'
        f'"summary": {json.dumps(records, indent=2, allow_nan=False)},\n'
        f'"attacks": [\n{lines}\n]\n}}\n'
    ).encode()
