"""Prints what TensorBoard sees in a folder of event files: {tag: [[step, value], …]}. Run: python tensorboard.py FOLDER"""

import json
import sys

sys.path.pop(0)  # this folder has a file of that name
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: E402

accumulator = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0}, purge_orphaned_data=True)
accumulator.Reload()
print(json.dumps({tag: [[e.step, e.value] for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}))
