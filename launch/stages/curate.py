"""Sources to tables of documents, and the funnel."""

from data import curate, engine
from launch import decontamination
from launch.job import Job


def run(job: Job) -> dict:
    """Sources to tables of documents, and the funnel."""
    with engine.start(job.runner) as workers:
        counted = curate.curate(
            job.settings.data,
            job.run.stage("curate"),
            job.run.cache("curate"),
            workers,
            decontamination.texts(job.settings, job.progress.note),
            job.progress.log,
        )
    job.refuse_changed_files()
    sums = {
        f"{key}_{unit}": sum(domain[unit] for domain in counted[key].values())
        for key in ("read", "kept", "heldout")
        for unit in ("documents", "bytes")
    }
    return {**sums, "broken_records": counted["num_broken"]}
