"""The report where the rest of a run is logged."""

from lightning.pytorch.loggers import WandbLogger

from .rundir import RunDirectory


def log_report(run: RunDirectory) -> None:
    """To Weights & Biases: the page to look at, and report/ and measurements/ as an artefact.

    Other loggers keep no artefacts.
    """
    logger = run.logger
    if not isinstance(logger, WandbLogger):
        return
    import wandb

    artefact = wandb.Artifact(f"report-{logger.experiment.id}", "report")
    for folder in ("report", "measurements"):
        artefact.add_dir(str(run.path / folder), folder)
    logger.experiment.log_artifact(artefact)
    logger.experiment.log({"report": wandb.Html(str(run.path / "report" / "report.html"), inject=False)})
