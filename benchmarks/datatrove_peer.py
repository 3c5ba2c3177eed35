"""datatrove's filters and MinHash deduplication, timed: the peer that benchmarks.curate calls.

    PEER_PYTHON benchmarks/datatrove_peer.py PARQUET_DIR OUT WORKERS

Runs under an interpreter that has datatrove[processing], and imports nothing of ours. Prints a JSON
line a measure, {measure, secs}: the rules of Gopher, C4 and FineWeb as datatrove has them, each
document that passes written as JSON lines; MinHash signatures, buckets, clusters and the filter.
"""

import json
import shutil
import sys
import time

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import JsonlWriter


def main() -> None:
    """Measures both once."""
    folder, out, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
    shutil.rmtree(out, ignore_errors=True)
    read = ParquetReader(folder, text_key="text", id_key="id", glob_pattern="*.parquet")
    rules = [
        *(GopherRepetitionFilter(), GopherQualityFilter(), FineWebQualityFilter()),
        C4QualityFilter(filter_no_terminal_punct=False),
    ]
    secs = _run(f"{out}/rules", [read, *rules, JsonlWriter(f"{out}/kept")], workers, workers)
    print(json.dumps({"measure": "datatrove: rules", "secs": round(secs, 2)}), flush=True)

    config, parts = MinhashConfig(), f"{out}/minhash"
    stages = (
        ([read, MinhashDedupSignature(f"{parts}/signed", config)], workers),
        (
            [MinhashDedupBuckets(f"{parts}/signed", f"{parts}/buckets", config=config)],
            config.num_buckets,
        ),
        ([MinhashDedupCluster(f"{parts}/buckets", f"{parts}/remove", config=config)], 1),
        ([read, MinhashDedupFilter(f"{parts}/remove"), JsonlWriter(f"{parts}/kept")], workers),
    )
    secs = sum(
        _run(f"{parts}/log{number}", pipeline, tasks, workers)
        for number, (pipeline, tasks) in enumerate(stages)
    )
    print(json.dumps({"measure": "datatrove: MinHash", "secs": round(secs, 2)}), flush=True)


def _run(log: str, pipeline: list, tasks: int, workers: int) -> float:
    start = time.perf_counter()
    LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(tasks, workers), logging_dir=log).run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
