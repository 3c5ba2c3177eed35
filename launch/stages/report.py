"""The HTML report of a run."""

from launch.job import Job
from launch.report.page import write_report


def run(job: Job) -> dict:
    """Writes RUN/report.html."""
    path = write_report(job.run.path)
    return {"page": path.name, "page_bytes": path.stat().st_size}
