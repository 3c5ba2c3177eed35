"""Curated texts, for what is measured on them."""

from data import documents
from launch.job import Job


def read_sample(job: Job, split: str, num_bytes: int) -> dict[str, list[str]]:
    """Curated texts of 'train' or 'heldout' by domain: all, or a sample where there is more."""
    num_domains = len(read_first(job, 1))
    return documents.collect(
        job.run.stage("curate") / "documents",
        split,
        num_bytes // max(1, num_domains),
        lambda text: len(text.encode()),
        scattered=True,
    )


def read_first(job: Job, num_documents: int) -> dict[str, list[str]]:
    """The first held-out documents of each domain; says so if there are none."""
    folder = job.run.stage("curate") / "documents"
    texts = documents.collect(folder, "heldout", num_documents, lambda _: 1, scattered=False)
    if not texts:
        job.progress.note(
            "no document is held out (data.heldout_fraction is a share of source files): nothing "
            "to measure bits per byte on"
        )
    return texts
