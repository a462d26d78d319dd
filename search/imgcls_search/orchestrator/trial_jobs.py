"""The job for the next stage of a trial."""

from __future__ import annotations

from imgcls_search.orchestrator import teachers
from imgcls_search.orchestrator.context import Assistant, SearchContext
from imgcls_search.orchestrator.stages import WORK, Stage, Stages
from imgcls_search.protocol import Job
from imgcls_search.trial import Trial


def job_of(
    trial: Trial, stage: Stage, stages: Stages, context: SearchContext, helper: Assistant, backbones: tuple[str, ...]
) -> Job:
    """Return the job of a trial at a stage; `backbones` are the weights files of the networks that it starts from."""
    config, files = trial.candidate.config, context.files
    exports = trial.until == trial.last_epoch(context.epochs) and stages.exports(trial)
    return Job(
        trial=trial.number,
        config=config,
        data=helper.prepare(config).to_dict(),
        seed=trial.seed,
        portion="train",
        until_epoch=trial.until,
        from_epoch=trial.epoch,
        checkpoint=str(files.checkpoint(trial.number)),
        log=str(files.log(trial.number)),
        micro_batches=trial.micro_batches,
        kind=WORK[stage],
        pictures=str(files.pictures),
        is_scored=stages.is_scored_at(trial, trial.until),
        artifact=str(files.artifact(trial.number)) if exports else "",
        teacher=teachers.path_of(config, files, context.record.facts.get("teachers", {})),
        backbones=backbones,
        metrics=context.space.named_metrics,
    )
