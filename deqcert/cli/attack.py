"""``deqcert attack``: does any attack refute a certificate?"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from deqcert.attacks import (
    Campaign,
    CertificateAttack,
    ExactTarget,
    Outcome,
    SmoothedTarget,
    Target,
    campaign_table,
    finding_lines,
    found_violation,
    summarize_campaign,
)
from deqcert.checkpoints import load_network
from deqcert.cli.arguments import parse_with_settings, values_of
from deqcert.cli.instantiation import instantiate
from deqcert.cli.trainer_verbs import NO_CHECKPOINT, DeqCertCLI
from deqcert.cli.verify import print_verification
from deqcert.data import CertificationSet
from deqcert.deterministic import Deterministic
from deqcert.errors import DataError, LedgerError, SettingError, require, require_count
from deqcert.files import write_atomically
from deqcert.implicit import GradientEstimator, ImplicitAdjoint, OneStep
from deqcert.lightning.identity import run_identity
from deqcert.lightning.methods import choose_method
from deqcert.report import format_text
from deqcert.runs import Run, automatic_radii, certify_all, identity_differences, read_run, verify_run
from deqcert.statistics import CertificationRule, MarginRule
from deqcert.version import __version__

_ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}
_GRADIENTS: dict[str, GradientEstimator] = {"implicit": ImplicitAdjoint(), "one_step": OneStep()}
# What determines g, but for the rounding of kernels: votes of any sampling would have been votes of it.
_DECISIVE = ("smoothing", "certification", "classifier", "data", "image", "precision")
_NOISE = ("samples", "n", "alpha_attack")
_ADJOINT_TOLERANCE = 1e-4  # without noise the implicit gradient has the solver of the run, but need not be as exact


def run_attack(args: Sequence[str]) -> int:
    """Verify a run, attack its certificates, print what was found and write ``attack.json`` beside them.

    Returns:
        1 if a file of the run does not follow from its votes, in which case nothing is attacked, or if a sound
        certificate is refuted; otherwise 0.
    """
    parsed, overrides = parse_with_settings(_parser(), args)
    for old in values_of(args, "--images"):
        raise SettingError("images", old, "is called --data.max_examples, as in certify")
    require_count("data.max_examples", parsed.max_examples, minimum=1)
    attack = CertificateAttack(parsed.steps, parsed.samples, parsed.restarts, _GRADIENTS[parsed.gradient])
    radii = (0.0,) if parsed.radii is None else tuple(parsed.radii)
    campaign = Campaign(attack, radii, tuple(parsed.factors), parsed.n, parsed.alpha_attack)
    if not (Path(parsed.run) / "certificates.json").exists():
        print(f"{parsed.run}: has no certificates.json to verify; the votes that its ledger has so far are attacked")
    elif print_verification(parsed.run, verify_run(parsed.run)) == 1:
        print(f"{parsed.run}: not attacked, since that would say nothing about these files")
        return 1
    run = read_run(parsed.run)
    cli, examples = _certified(run, parsed.device, overrides)
    chosen = cli.config_init["certify"]
    network, certification = getattr(cli.model, "network", cli.model), chosen["certification"]
    measured = run.votes[: parsed.max_examples]
    positions = {index: position for position, index in enumerate(examples.indices)}
    images = [examples[positions[each.index]][0].to(cli.model.device) for each in measured]

    outcomes: list[Outcome] = []
    with cli.trainer.precision_plugin.predict_step_context():
        rule: CertificationRule | MarginRule
        target: Target
        if certification is None:
            rule, sampling, g = chosen["certificate"].rule, chosen["sampling"], chosen["smoothing"].of(network)
            target = SmoothedTarget(g, images[0], parsed.seed)
            reported = automatic_radii(g.sigma, rule.alpha, sampling.n)
            audit = chosen["certificate"].rule.audit
            name, again = sampling.name(g.base), f"certified again at alpha = {rule.alpha:g}, audit rule {audit}"
            search = f"PGD of {attack.steps} steps on {attack.samples} noise vectors, {campaign.n} fresh noisy samples"
        else:
            campaign = _without_noise(args, campaign, certification)
            rule, reported = MarginRule(), Campaign().radii
            solver, norm = certification.solver, certification.norm
            target = ExactTarget(certification.prepared(network), solver, norm, parsed.seed)
            name, again = f"{type(certification).__name__} {type(network).__name__}", "certified again"
            search = f"PGD of {attack.steps} steps in {target.norm}, judged exactly"
        if parsed.radii is None:
            campaign = dataclasses.replace(campaign, radii=tuple(chosen["certificate"].radii or reported))
        certificates = certify_all(rule, measured)
        with tqdm(desc="attack", total=len(images), unit="image", dynamic_ncols=True) as bar:
            for found in campaign.run(target, images, certificates):
                outcomes += found
                bar.set_postfix(refuted=sum(each.violation for each in outcomes), refresh=False)
                bar.update()
    summary = summarize_campaign(campaign, certificates, outcomes, rule.alpha, target.norm)

    path = Path(parsed.run) / "attack.json"
    settings = {name: getattr(parsed, name) for name in ("max_examples", "steps", "restarts", "gradient")}
    settings |= {
        "samples": campaign.attack.samples,
        "n": campaign.n,
        "radii": campaign.radii,
        "factors": campaign.factors,
        "alpha_attack": campaign.alpha,
    }
    settings |= {"seed": parsed.seed, "device": cli.model.device.type, "version": __version__}
    settings |= {"votes_sha256": run.digest, "certificate": dataclasses.asdict(rule)}
    numbers = summary._asdict() | {"radii": [row._asdict() for row in summary.radii]}
    write_atomically(path, _document({"settings": settings, "run": run.identity, "summary": numbers}, outcomes))
    kind = "votes" if certification is None else "margins"
    print(f"attacked: the {kind} in the ledger (sha256 {run.digest}), {again}")
    print(format_text(campaign_table(summary)))
    shown = f"{summary.images} images of {parsed.run} ({name}), {summary.certified} of them certified"
    print(f"{shown} and attacked; {search}; {path}")
    print("\n".join(finding_lines(summary, outcomes)))
    return int(found_violation(outcomes))


def _certified(run: Run, device: str | None, overrides: Sequence[str]) -> tuple[DeqCertCLI, CertificationSet]:
    """Build from ``certify.yaml`` and further arguments what a run has certified, ready to be evaluated.

    Other weights, data, smoothing or precision are refused: attacking them would say nothing about the certificates.
    """
    kind = device or run.identity["device"]
    require(kind in _ACCELERATORS, "device", kind, f"must be one of {', '.join(_ACCELERATORS)}")
    require(kind == "cpu" or torch.cuda.is_available(), "device", kind, "is not here; --device cpu is")
    config = run.directory / "certify.yaml"
    if not config.is_file():
        raise DataError(f"{config}: must be a file; deqcert certify writes it beside the ledger")
    cli = instantiate(["certify", "--config", str(config), f"--trainer.accelerator={_ACCELERATORS[kind]}", *overrides])
    chosen, trainer, data = cli.config_init["certify"], cli.trainer, cli.datamodule
    if chosen["ckpt_path"] not in (None, NO_CHECKPOINT):
        load_network(chosen["ckpt_path"], cli.model.network)
    trainer.precision_plugin.convert_module(cli.model).to(trainer.strategy.root_device).eval()
    data.prepare_data()
    data.setup("predict")
    examples = data.certification_set()
    asked = {name: chosen[name] for name in ("smoothing", "sampling", "certification", "seed")}
    method = choose_method(**asked, rule=chosen["certificate"].rule)
    built = run_identity(method.settings(), cli.model, examples, str(trainer.precision))
    theirs, ours = ({key: each[key] for key in _DECISIVE if key in each} for each in (run.identity, built))
    differences = identity_differences(theirs, ours)
    if differences:
        others = "; ".join(differences)
        raise LedgerError(f"{run.directory}: was certified with another model, data or settings ({others})")
    missing = {vote.index for vote in run.votes} - set(examples.indices)
    if missing:
        raise DataError(f"{run.directory}: image {min(missing)} has votes but is not among the selected images")
    return cli, examples


def _without_noise(args: Sequence[str], campaign: Campaign, certification: Deterministic) -> Campaign:
    """Return the campaign as it judges a network without noise, once; settings of noise are refused."""
    for name in _NOISE:
        for value in values_of(args, f"--{name}"):
            kind = type(certification).__name__
            raise SettingError(name, value, f"must be left out: a certificate by {kind} is without noise")
    attack = dataclasses.replace(campaign.attack, samples=1)
    if isinstance(attack.gradient, ImplicitAdjoint):
        solver = dataclasses.replace(certification.solver, tolerance=_ADJOINT_TOLERANCE)
        attack = dataclasses.replace(attack, gradient=ImplicitAdjoint(solver))
    return dataclasses.replace(campaign, attack=attack, n=1)


def _document(head: Mapping[str, Any], outcomes: Sequence[Outcome]) -> bytes:
    """Return ``{"settings": …, "run": …, "summary": …, "attacks": […]}`` as strict JSON, one attack per line."""
    parts = [f'"{name}": {json.dumps(content, indent=2, allow_nan=False)}' for name, content in head.items()]
    lines = ",\n".join(json.dumps(outcome.to_json(), allow_nan=False) for outcome in outcomes)
    return ("{\n" + ",\n".join([*parts, f'"attacks": [\n{lines}\n]']) + "\n}\n").encode()


def _parser() -> argparse.ArgumentParser:
    defaults, search = Campaign(), CertificateAttack()
    parser = argparse.ArgumentParser(
        prog="deqcert attack",
        description="Verify a run, attack what it certified by projected gradient descent inside and outside of the "
        "certified radii, and test each point that was found on fresh noise, or exactly where the certificate is "
        "without noise. Prints empirical robust accuracy beside certified accuracy and writes RUN/attack.json. Ends "
        "with code 1 if a sound certificate is refuted, or, without any attack, if a file of the run does not follow "
        "from its votes.",
        epilog="Model, data and smoothing are built from RUN/certify.yaml, whose relative paths are relative to the "
        "working directory; further options are those of deqcert certify and replace what it says, "
        "e.g. --ckpt_path FILE or --data.root DIR. Other weights or data than the certified ones are refused.",
        allow_abbrev=False,
    )
    option = parser.add_argument
    option("run", metavar="RUN", help="directory of a run, its ledger_dir")
    first = "first N images of the run (%(default)s)"
    option("--data.max_examples", dest="max_examples", type=int, default=20, metavar="N", help=first)
    option("--radii", type=float, nargs="*", metavar="R", help="l2 radii; default: those of the run")
    inside = f"radii in units of each certified radius, below 1 inside of it ({' '.join(map(str, defaults.factors))})"
    option("--factors", type=float, nargs="*", default=defaults.factors, metavar="F", help=inside)
    option("--steps", type=int, default=search.steps, help="gradient steps (%(default)s)")
    option("--samples", type=int, default=search.samples, help="noise vectors inside of the attack (%(default)s)")
    option(
        "--restarts",
        type=int,
        default=search.restarts,
        help="attacks with other noise, or without noise on other classes (%(default)s)",
    )
    through = "gradient through the fixed point (%(default)s)"
    option("--gradient", choices=sorted(_GRADIENTS), default="implicit", help=through)
    option("--n", type=int, default=defaults.n, help="fresh noisy samples of each point (%(default)s)")
    wrong = "probability that any true certificate is refuted (%(default)s)"
    option("--alpha_attack", type=float, default=defaults.alpha, help=wrong)
    option("--seed", type=int, default=0, help="seed of attack and fresh noise (%(default)s)")
    option("--device", choices=["cpu", "cuda"], help="default: that of the run")
    return parser
